package main

import (
	"io"
	"os"

	"github.com/rs/zerolog"
	"golang.org/x/term"
)

// programLog is the log of a program that runs for long: lines of JSON, or something readable on a terminal. It is made
// here and carried by the context.
func programLog(w io.Writer, level string) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || l == zerolog.NoLevel {
		return zerolog.Nop(), usagef("--log-level %q: want debug, info, warn or error", level)
	}
	zerolog.ErrorFieldName = "err" // as all of Heddle's logs call it
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		w = zerolog.ConsoleWriter{Out: f, NoColor: os.Getenv("NO_COLOR") != ""}
	}
	return zerolog.New(w).Level(l).With().Timestamp().Logger(), nil
}
