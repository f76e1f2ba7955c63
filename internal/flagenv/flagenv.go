// Package flagenv gives every flag of a command an environment variable, and says so in --help: the flag wins, then the
// variable, then the default.
package flagenv

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// Name is the environment variable of a flag: --join-token-file is HEDDLE_JOIN_TOKEN_FILE.
func Name(flag string) string {
	return "HEDDLE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Bind names each flag's variable in its usage text. Call it once, after the flags are defined.
func Bind(fs *pflag.FlagSet) {
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			f.Usage += " [" + Name(f.Name) + "]"
		}
	})
}

// Apply sets the flags that were not given on the command line from the environment. Lists are separated by commas.
func Apply(fs *pflag.FlagSet) error {
	var first error
	fs.VisitAll(func(f *pflag.Flag) {
		v, ok := os.LookupEnv(Name(f.Name))
		if !ok || f.Changed || f.Name == "help" || first != nil {
			return
		}
		if err := fs.Set(f.Name, v); err != nil {
			first = fmt.Errorf("%s=%q: %w", Name(f.Name), v, err)
		}
	})
	return first
}
