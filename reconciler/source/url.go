package source

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// address is where a repository is: a path on this machine, or a URL without credentials and, apart, what its userinfo
// said.
type address struct {
	path           string // of a local repository; else empty
	url            *url.URL
	user, password string
}

// scpLike is git's short form of an SSH address, user@host:path: a colon before the first slash.
var scpLike = regexp.MustCompile(`^(?:([^/:]*)(?::([^/]*))?@)?(\[[^\]/]+\]|[^/:@]+):(.*)$`)

// parseURL tells local paths from remote addresses, and takes the credentials out of the latter.
func parseURL(raw string) (address, error) {
	bad := func(format string, args ...any) (address, error) {
		return address{}, fmt.Errorf("repository %q: "+format, append([]any{MaskedURL(raw)}, args...)...)
	}
	switch {
	case raw == "":
		return address{}, fmt.Errorf("no repository is given: name a path or a URL")
	case !strings.Contains(raw, "://"):
		m := scpLike.FindStringSubmatch(raw)
		_, err := os.Lstat(raw)
		if m == nil && err != nil && MaskedURL(raw) != raw {
			return bad("it is neither a path nor a valid URL; write ssh://user@host/path")
		}
		if m == nil || err == nil {
			abs, err := filepath.Abs(raw)
			return address{path: abs}, err
		}
		u := &url.URL{Scheme: "ssh", Host: m[3], Path: "/" + strings.TrimPrefix(m[4], "/")}
		if m[4] == "" {
			return bad("there is no path after the colon")
		}
		if !strings.HasPrefix(m[4], "/") {
			u.Path = "/~/" + m[4] // relative to the home directory; see sshPath
		}
		return address{url: u, user: m[1], password: m[2]}, nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		return bad("it is not a valid URL; write characters other than letters and digits as %%XX")
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" {
			return bad("a file:// URL has three slashes and no host, as in file:///srv/policy.git")
		}
		return address{path: filepath.Clean(u.Path)}, nil
	case "https", "http", "ssh":
	default:
		return bad("%s:// is not supported: use https://, ssh:// or a path", u.Scheme)
	}
	if u.Hostname() == "" || strings.Trim(u.Path, "/") == "" {
		return bad("a host and a path are needed, as in %s://git.example.org/team/policy.git", u.Scheme)
	}
	a := address{url: u}
	if u.User != nil {
		a.user = u.User.Username()
		a.password, _ = u.User.Password()
		u.User = nil
	}
	return a, nil
}

// loginName is an SSH user name that can be no secret worth hiding.
var loginName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// MaskedURL is a repository's address for people: userinfo other than an SSH login name is replaced by "***", queries
// and fragments, which may hold tokens too, are cut off. It never fails, and masks too much rather than too little:
// passwords are often pasted without the escapes that a URL needs, so all up to the last at sign counts as userinfo.
func MaskedURL(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	at := strings.LastIndexByte(rest, '@')
	switch {
	case !ok: // user:password@host:path is no address that works, but somebody will try it
		at := strings.LastIndexByte(raw, '@')
		if at < 0 || strings.ContainsAny(raw[:1], "/.") || loginName.MatchString(raw[:at]) {
			return raw
		}
		return "***" + raw[at:]
	case strings.EqualFold(scheme, "file"):
		return raw
	case at >= 0 && !(strings.EqualFold(scheme, "ssh") && loginName.MatchString(rest[:at])):
		rest = "***" + rest[at:]
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	return scheme + "://" + rest
}

// loopback reports whether a URL's host is this machine.
func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// checkRef refuses what cannot name a branch or a tag, before it reaches a server or the disk.
func checkRef(ref string) error {
	if _, err := parseHash(ref); err == nil {
		return fmt.Errorf("ref %.12s… is a commit: name a branch or a tag, such as main", ref)
	}
	for _, name := range candidates(ref) {
		if err := name.Validate(); err != nil || strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return fmt.Errorf("ref %q cannot be the name of a branch or a tag: name one, such as main", ref)
		}
	}
	return nil
}

// candidates are the full names that a ref may stand for, in the order in which they are tried.
func candidates(ref string) []plumbing.ReferenceName {
	if ref == "HEAD" || strings.HasPrefix(ref, "refs/") {
		return []plumbing.ReferenceName{plumbing.ReferenceName(ref)}
	}
	return []plumbing.ReferenceName{plumbing.NewBranchReferenceName(ref), plumbing.NewTagReferenceName(ref)}
}

// noRef is the error for a ref that does not exist, or has no commit yet: it names the refs that do exist, and those
// that were probably meant first. detail is added when it is not empty.
func (s *Source) noRef(all []plumbing.ReferenceName, detail string) error {
	var names []string
	for _, n := range all {
		if n.IsBranch() || n.IsTag() {
			names = append(names, n.Short())
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if detail != "" {
		detail = "; " + detail
	}
	short := plumbing.ReferenceName(s.opts.Ref).Short()
	if len(names) == 0 {
		return fmt.Errorf("%s has no commit yet%s: commit the policy to branch %s first", s.masked, detail, short)
	}
	hint := ""
	if near := diag.Nearest(short, names); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	const show = 8
	list := strings.Join(names[:min(show, len(names))], ", ")
	if more := len(names) - show; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("%s has no branch or tag %q%s%s it has %s",
		s.masked, s.opts.Ref, detail, cmp.Or(hint, ":"), list)
}
