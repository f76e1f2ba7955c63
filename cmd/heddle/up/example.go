package up

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Processes is an example's processes.json: which programs make the mesh. Policy never names executables; this file,
// which is not in the policy repository, does.
type Processes struct {
	APIVersion string     `json:"apiVersion"`
	Entry      *Entry     `json:"entry,omitempty"`
	Workloads  []Workload `json:"workloads"`
	// Try are commands and changes to suggest, with {entry}, {repo} and {state} for what they are in this run.
	Try []string `json:"try,omitempty"`
}

// Entry is what a person calls from outside.
type Entry struct {
	Workload string `json:"workload"`
	Port     string `json:"port"`
	Path     string `json:"path"`
}

// Workload is one application with one sidecar.
type Workload struct {
	Name    string           `json:"name"` // "namespace/workload", as policy declares it
	Service mesh.ServiceName `json:"service"`
	// Run is the program and its arguments. A name without a slash lies beside the heddle binary; one with a slash is
	// relative to the example's directory.
	Run []string `json:"run"`
	// Ports are the service's ports that the program serves. It is told where to listen by LISTEN_<PORT>.
	Ports map[string]Port `json:"ports,omitempty"`
	// Upstreams name environment variables that are given the address of a listener for one upstream,
	// "namespace/service:port".
	Upstreams map[string]string `json:"upstreams,omitempty"`
	// Local names environment variables that are given a loopback address outside the mesh.
	Local []string          `json:"local,omitempty"`
	Env   map[string]string `json:"env,omitempty"`
}

// Port says how a port is served.
type Port struct {
	// Expose gives the port a listener for callers from outside the mesh.
	Expose bool `json:"expose,omitempty"`
}

// app and sidecar are the names of a workload's two processes. Namespaces are left out: check refuses what would clash.
func (w *Workload) app() string     { _, local, _ := strings.Cut(w.Name, "/"); return local }
func (w *Workload) sidecar() string { return w.app() + "-proxy" }

// slug names the workload in paths.
func (w *Workload) slug() string { return strings.ReplaceAll(w.Name, "/", "-") }

func readProcesses(example fs.FS) (*Processes, error) {
	b, err := fs.ReadFile(example, "processes.json")
	if err != nil {
		return nil, fmt.Errorf("the example: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	p := new(Processes)
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("processes.json: %w", err)
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("processes.json: %w", err)
	}
	return p, nil
}

func (p *Processes) check() error {
	if p.APIVersion != "heddle/v1" {
		return fmt.Errorf("apiVersion is %q; this version reads heddle/v1", p.APIVersion)
	}
	if len(p.Workloads) == 0 {
		return fmt.Errorf("there are no workloads")
	}
	names := []string{"reconciler", "controlplane"}
	for i := range p.Workloads {
		w := &p.Workloads[i]
		ns, local, ok := strings.Cut(w.Name, "/")
		switch {
		case !ok || ns == "" || local == "" || strings.ContainsAny(local, "/\\ ") || strings.HasPrefix(local, "."):
			return fmt.Errorf("workload %q: want namespace/name", w.Name)
		case len(w.Run) == 0 || w.Run[0] == "":
			return fmt.Errorf("workload %s: run names no program", w.Name)
		case w.Service.Namespace() != ns || w.Service.Local() == "":
			return fmt.Errorf("workload %s: service %q is not one of namespace %s", w.Name, w.Service, ns)
		case slices.Contains(names, w.app()):
			return fmt.Errorf("workload %s: there are two processes named %s", w.Name, w.app())
		}
		names = append(names, w.app(), w.sidecar())
		for variable, target := range w.Upstreams {
			if service, port, ok := strings.Cut(target, ":"); !ok || port == "" || mesh.ServiceName(service).Local() == "" {
				return fmt.Errorf("workload %s: upstream %s=%q: want namespace/service:port", w.Name, variable, target)
			}
		}
	}
	if e := p.Entry; e != nil {
		i := slices.IndexFunc(p.Workloads, func(w Workload) bool { return w.Name == e.Workload })
		if i < 0 || !p.Workloads[i].Ports[e.Port].Expose {
			return fmt.Errorf("entry %s, port %q: no workload exposes it", e.Workload, e.Port)
		}
	}
	return nil
}
