package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"statusrelay/internal/settings"
	"statusrelay/internal/telemetry"
)

// Main runs a command tree as a program: interrupt and SIGTERM end its context,
// a second one ends the process at once, and an error ends it with exit code 1,
// or with that of an error with a method ExitCode() int.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, complaint(root.Name(), err))
		code := 1
		var coded interface{ ExitCode() int }
		if errors.As(err, &coded) {
			code = coded.ExitCode()
		}
		os.Exit(code)
	}
}

// complaint is an error as people read it: one line, or a list of mistakes.
func complaint(program string, err error) string {
	lines := strings.Split(err.Error(), "\n")
	if len(lines) == 1 {
		return program + ": " + lines[0]
	}
	return fmt.Sprintf("%s: %d mistakes\n  %s", program, len(lines), strings.Join(lines, "\n  "))
}

// NewRoot returns the root of a program's commands.
func NewRoot(name, short string, commands ...*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use: name, Short: short, Version: telemetry.Version(),
		SilenceErrors: true, // Main prints them
		SilenceUsage:  true,
	}
	root.AddCommand(commands...)
	return root
}

// A Service is a program that serves with a configuration C.
type Service[C any] struct {
	Defaults C
	// Base is the part of a configuration that every service has.
	Base func(C) BaseConfig
	// Check reads every file that a configuration names and reports every mistake
	// in them.
	Check func(C) error
	Serve func(context.Context, C) error
}

// Commands returns serve, check-config, config and healthcheck.
func (s Service[C]) Commands() []*cobra.Command {
	return []*cobra.Command{
		s.Command("serve", "Run one replica", func(cmd *cobra.Command, c C) error { return s.Serve(cmd.Context(), c) }),
		s.command("check-config", "Say everything that is wrong with the configuration and the files that it names",
			func(cmd *cobra.Command, c C, _ *settings.Set[C], err error) error {
				if err = errors.Join(err, s.Check(c)); err == nil {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
				}
				return err
			}),
		s.command("config", "Print the configuration in force, with where each value comes from; secrets masked",
			func(cmd *cobra.Command, c C, set *settings.Set[C], err error) error {
				return errors.Join(set.Print(cmd.OutOrStdout(), c), err)
			}),
		s.command("healthcheck", "Ask the replica on this machine whether it is ready (for images without a shell)",
			func(cmd *cobra.Command, c C, _ *settings.Set[C], _ error) error {
				b := s.Base(c) // whatever else is wrong is not asked here
				return Healthcheck(cmd.Context(), b.PrivateListen, b.PrivateTLS.Cert)
			}),
	}
}

// Command returns one more command, which runs with the configuration that serve
// would have.
func (s Service[C]) Command(name, short string, run func(*cobra.Command, C) error) *cobra.Command {
	return s.command(name, short, func(cmd *cobra.Command, c C, _ *settings.Set[C], err error) error {
		if err != nil {
			return err
		}
		return run(cmd, c)
	})
}

// command returns a command that loads the configuration and runs with it and
// with what is wrong with it.
func (s Service[C]) command(name, short string, run func(*cobra.Command, C, *settings.Set[C], error) error) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	set := settings.Bind(cmd, s.Defaults)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := set.Load()
		return run(cmd, c, set, err)
	}
	return cmd
}
