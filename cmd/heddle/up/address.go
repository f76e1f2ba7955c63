package up

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/process"
	"github.com/heddle-mesh/heddle/internal/durable"
)

// File is <state>/up.json: what runs where. It is written anew with every change, and its addresses are used again by
// the next run.
type File struct {
	APIVersion string            `json:"apiVersion"`
	PID        int               `json:"pid"` // of heddle up; 0: it does not run
	Repository string            `json:"repository"`
	Ref        string            `json:"ref"`
	Entry      string            `json:"entry,omitempty"` // what to call from outside
	Addresses  map[string]string `json:"addresses"`
	Processes  []process.State   `json:"processes"`
}

// ReadFile reads up.json of a state directory.
func ReadFile(state string) (*File, error) {
	b, err := os.ReadFile(filepath.Join(state, "up.json"))
	if err != nil {
		return nil, err
	}
	f := new(File)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(state, "up.json"), err)
	}
	return f, nil
}

func (f *File) write(state string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(state, "up.json"), append(b, '\n'), 0o600)
}

// book hands out loopback addresses. A name keeps its address from run to run, unless somebody else has taken it.
type book struct {
	addresses map[string]string
	taken     map[int]bool
	// ports are those to choose from, in the order in which they are tried. The ephemeral ones are left alone: any
	// program may be given one of them at any moment.
	ports []int
}

const firstPort, lastPort = 10000, 65000

func newBook(state string, before map[string]string) *book {
	b := &book{addresses: map[string]string{}, taken: map[int]bool{}}
	low, high := ephemeral()
	if low <= firstPort && high >= lastPort {
		low, high = 0, 0 // where nearly all are ephemeral, they have to do
	}
	for port := firstPort; port < lastPort; port++ {
		if port < low || port > high {
			b.ports = append(b.ports, port)
		}
	}
	// Two meshes on one machine start looking in different places.
	h := fnv.New32a()
	h.Write([]byte(state))
	at := int(h.Sum32() % uint32(len(b.ports)))
	b.ports = slices.Concat(b.ports[at:], b.ports[:at])
	for name, address := range before {
		b.addresses[name] = address
		b.taken[portOf(address)] = true
	}
	return b
}

// ephemeral is the range of ports that the system hands out by itself; where it cannot be read, the IANA's range and
// Linux's default together.
func ephemeral() (low, high int) {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if f := strings.Fields(string(raw)); len(f) == 2 {
			low, err1 := strconv.Atoi(f[0])
			high, err2 := strconv.Atoi(f[1])
			if err1 == nil && err2 == nil {
				return low, high
			}
		}
	}
	return 32768, 65535
}

func portOf(address string) int {
	_, p, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(p) // 0 where it is none
	return n
}

func free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// address is a name's "127.0.0.1:port".
func (b *book) address(name string) (string, error) {
	if a, ok := b.addresses[name]; ok {
		if port := portOf(a); port > 0 && free(port) {
			return a, nil
		}
	}
	for len(b.ports) > 0 {
		port := b.ports[0]
		b.ports = b.ports[1:]
		if b.taken[port] || !free(port) {
			continue
		}
		b.addresses[name] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		return b.addresses[name], nil
	}
	return "", errors.New("no port of 127.0.0.1 is free")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
