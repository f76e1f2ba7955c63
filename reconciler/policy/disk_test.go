package policy

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// spentBelow is the processor time of children that were waited for: it stands still where there was none.
func spentBelow(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func kept(t *testing.T, dir string) (paths []string, bytes int64) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		paths, bytes = append(paths, path), bytes+info.Size()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return paths, bytes
}

// TestCacheDir: a second process evaluates nothing and says the same, sound or not; what is damaged is evaluated again.
func TestCacheDir(t *testing.T) {
	broken := all()
	broken["services/shop/web.cue"] = header + "services: shop: web: ports: http: prot: 80\n"
	for name, files := range map[string]map[string]string{"sound": all(), "broken": broken} {
		dir := filepath.Join(t.TempDir(), "cache")
		texts := map[string][]byte{}
		for name, text := range files {
			texts[name] = []byte(text)
		}
		run := func(o Options) (*v1alpha1.Document, diag.List, bool) {
			t.Helper()
			before := spentBelow(t)
			doc, findings, err := New(o).LoadFiles(t.Context(), texts, "")
			if err != nil {
				t.Fatal(err)
			}
			return doc, findings, spentBelow(t) > before
		}
		want, findings, _ := run(Options{})
		same := func(o Options, evaluates bool) {
			t.Helper()
			got, found, evaluated := run(o)
			if evaluated != evaluates {
				t.Errorf("%s: evaluated: %v, want %v", name, evaluated, evaluates)
			}
			if d := cmp.Diff(findings, found); d != "" {
				t.Errorf("%s: findings (-want +got):\n%s", name, d)
			}
			if !reflect.DeepEqual(want, got) {
				t.Errorf("%s: another document:\n%+v\nwant\n%+v", name, got, want)
			}
		}
		same(Options{CacheDir: dir}, true)
		same(Options{CacheDir: dir}, false)
		same(Options{CacheDir: dir, Heap: 256 << 20}, true) // another limit

		paths, _ := kept(t, dir)
		for i, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if b[len(b)/2] ^= 1; i%2 == 0 {
				b = b[:len(b)-1]
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		same(Options{CacheDir: dir}, true)
		same(Options{CacheDir: dir}, false)

		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		same(Options{CacheDir: dir}, true) // anybody could have written it
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}

		// One file is the most that fits.
		if same(Options{CacheDir: dir, CacheBytes: 1, CPU: 9 * time.Second}, true); len(paths) > 0 {
			if paths, bytes := kept(t, dir); bytes > 1 {
				t.Errorf("%s: %d files of %d bytes are kept", name, len(paths), bytes)
			}
		}
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		same(Options{CacheDir: file}, true)
	}
}

// What ran away on this machine, or crashed, may pass on another.
func TestCacheDirForgetsTheMachine(t *testing.T) {
	d := openDisk(Options{CacheDir: t.TempDir(), CacheBytes: 1 << 20})
	if d == nil {
		t.Fatal("not opened")
	}
	for id, want := range map[string]int{diag.Runaway: 0, diag.EvalCrashed: 0, diag.Syntax: 1} {
		d.put(key{}, &part{findings: diag.List{{ID: id, Message: "m"}}}, result{})
		if paths, _ := kept(t, d.dir); len(paths) != want {
			t.Errorf("%s: %d files are kept, want %d", id, len(paths), want)
		}
		for _, path := range func() []string { p, _ := kept(t, d.dir); return p }() {
			os.Remove(path)
		}
	}
}

// TestPlans: every field of the language survives, with all that its type can hold.
func TestPlans(t *testing.T) {
	var fill func(v reflect.Value, n int)
	fill = func(v reflect.Value, n int) {
		switch v.Kind() {
		case reflect.String:
			v.SetString([]string{"", "x", "ä \x00\n"}[n%3])
		case reflect.Int64:
			v.SetInt([]int64{-1, 0, 1 << 40}[n%3])
		case reflect.Float64:
			v.SetFloat([]float64{0.5, 0, -1e300}[n%3])
		case reflect.Bool:
			v.SetBool(n%2 == 0)
		case reflect.Pointer:
			if n%4 != 3 {
				v.Set(reflect.New(v.Type().Elem()))
				fill(v.Elem(), n+1)
			}
		case reflect.Slice:
			if n%4 != 2 {
				v.Set(reflect.MakeSlice(v.Type(), n%3, n%3))
				for i := range v.Len() {
					fill(v.Index(i), n+i+1)
				}
			}
		case reflect.Map:
			if n%4 == 1 {
				return
			}
			v.Set(reflect.MakeMap(v.Type()))
			for i := range n % 3 {
				k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fill(k, n+i)
				fill(e, n+i+1)
				v.SetMapIndex(k, e)
			}
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), n+i)
			}
		}
	}
	for n := range 24 {
		p := &part{meshHash: "m", broken: []string{"b"}}
		for _, v := range p.values() {
			fill(v, n)
		}
		r := result{PlaceFiles: []string{"a", "b"}, Places: "0 1 2 services.shop\n1 70000 5 services.shop.a b\n"}
		p.places, _ = r.places()
		b, err := encodePart(p, r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodePart(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(p, got) {
			t.Fatalf("%d: read\n%+v\nwant\n%+v", n, got, p)
		}
		for cut := range len(b) {
			if _, err := decodePart(b[:cut]); err == nil {
				t.Fatalf("%d: %d bytes of %d are read as a whole", n, cut, len(b))
			}
		}
	}
}
