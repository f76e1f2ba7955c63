package v1alpha1

import (
	"bytes"
	"strings"
	"testing"
)

func TestVendored(t *testing.T) {
	files := Vendored()
	if len(files) != len(Files())+1 {
		t.Errorf("%d files are vendored for %d of the schema", len(files), len(Files()))
	}
	version, sum, err := ParseVersion(files[VendorDir+"/"+VersionFile])
	if err != nil || version != Version || sum != Digest() {
		t.Errorf("VERSION says %s %s (%v), want %s %s", version, sum, err, Version, Digest())
	}
	copied := map[string][]byte{}
	for name, b := range files {
		base, ok := strings.CutPrefix(name, VendorDir+"/")
		if !ok || strings.Contains(base, "/") {
			t.Errorf("%s is not directly in %s", name, VendorDir)
		}
		copied[base] = b
	}
	if DigestOf(copied) != sum {
		t.Error("the copy does not have the digest that its VERSION names")
	}
	for name, edit := range map[string]func(){
		"a byte":  func() { copied["types.cue"] = bytes.Replace(copied["types.cue"], []byte("65535"), []byte("65536"), 1) },
		"a file":  func() { copied["more.cue"] = nil },
		"a name":  func() { copied["other.cue"] = copied["types.cue"]; delete(copied, "types.cue") },
		"nothing": func() {},
	} {
		before := DigestOf(copied)
		edit()
		if same := DigestOf(copied) == before; same != (name == "nothing") {
			t.Errorf("changing %s: digest the same = %v", name, same)
		}
	}
}

func TestParseVersion(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for text, ok := range map[string]bool{
		"version v1\nsha256 " + sum + "\n":     true,
		"sha256 " + sum + "\r\nversion v1\r\n": true,
		"":                                     false,
		"version v1\n":                         false,
		"version v1\nsha256 abc\n":             false,
		"version\nsha256 " + sum:               false,
	} {
		if _, _, err := ParseVersion([]byte(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
