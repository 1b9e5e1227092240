package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/notifier"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
	"statusrelay/internal/watcher"
)

// RelayConfig says which relay to ask.
type RelayConfig struct {
	Relay      string          `koanf:"relay" usage:"URL of the relay, such as https://status.example.com"`
	RelayToken settings.Secret `koanf:"relay_token" usage:"bearer token or API key for the relay, read again for each connection"`
}

// options are those of a watcher of an instance.
func (c RelayConfig) options(key status.Key) watcher.Options {
	o := watcher.Options{Relay: c.Relay, Key: key}
	if !c.RelayToken.IsZero() {
		o.Token = c.RelayToken.Current
	}
	return o
}

// An exit is an error that ends the program with a code of its own.
type exit struct {
	error
	code int
}

// The codes, beside 0 and that of every other error, which is 1.
const (
	exitNotFollowed = iota + 2
	exitFailed
	exitTerminated
	exitCanceled
	exitGone
	exitTimeout
)

const exitCodes = `Exit codes, once it is watched:
  0  Completed                 4  Terminated
  1  not, or not all, sent     5  Canceled
  2  cannot be followed        6  gone: purged, expired, or not yours to see
  3  Failed                    7  not ended within --timeout`

// ExitCode is asked by shell.Main.
func (e exit) ExitCode() int { return e.code }

// Unwrap gives the cause.
func (e exit) Unwrap() error { return e.error }

// following is how the commands that watch are told to.
type following struct {
	timeout, patience time.Duration
}

func (f *following) bind(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "how long to watch at most; 0: until it ends")
	cmd.Flags().DurationVar(&f.patience, "patience", time.Minute, "how long the relay may be away, or not know of the instance, before it is given up")
}

func watch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch ID",
		Short: "Follow an instance through the relay until it ends",
		Long: `Prints the status of an instance, as the relay shows it to the holder of the token, and every change of it until it ends.
It reconnects to whichever replica there is and misses nothing that counts.

The token or API key comes from STATUSRELAY_RELAY_TOKEN, or a file that STATUSRELAY_RELAY_TOKEN_FILE names.

` + exitCodes,
		Example: "  notifier watch --relay https://status.example.com --hub orders order-4711",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: cobra.NoFileCompletions,
	}
	set := settings.Bind(cmd, struct {
		DefaultHub string `koanf:"default_hub" usage:"hub if none is named"`
		RelayConfig
	}{DefaultHub: notifier.Defaults().DefaultHub})
	hub := cmd.Flags().String("hub", "", "hub of the instance")
	var f following
	f.bind(cmd)
	form := bindForm(cmd, "form of what is printed: text or json, one line for each change", nil)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := set.Load()
		if err != nil {
			return err
		}
		key := status.Key{Hub: c.DefaultHub, InstanceID: args[0]}
		if *hub != "" {
			key.Hub = *hub
		}
		if err := errors.Join(status.ValidHub(key.Hub), status.ValidInstanceID(key.InstanceID), c.check()); err != nil {
			return err
		}
		return f.run(cmd.Context(), c.options(key), form.printer(cmd))
	}
	return cmd
}

// check reports what keeps a relay from being asked.
func (c RelayConfig) check() error {
	_, err := watcher.New(c.options(status.Key{}))
	return err
}

// run follows an instance to its end, which is its error.
func (f *following) run(ctx context.Context, o watcher.Options, p *printer) error {
	o.Patience = f.patience
	o.Trouble = func(cause error, pause time.Duration) {
		p.talk("%v; again in %v\n", cause, pause.Round(100*time.Millisecond))
	}
	w, err := watcher.New(o)
	if err != nil {
		return err
	}
	watching := ctx
	if f.timeout > 0 {
		var cancel context.CancelFunc
		watching, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	var last watcher.Change
	err = w.Follow(watching, func(c watcher.Change) bool {
		last = c
		p.change(c)
		return p.err == nil && !c.Ended()
	})
	switch {
	case ctx.Err() != nil:
		return exit{errors.New("interrupted"), exitNotFollowed}
	case errors.Is(err, context.DeadlineExceeded) && watching.Err() != nil:
		return exit{fmt.Errorf("%s has not ended within %v", o.Key, f.timeout), exitTimeout}
	case err != nil:
		return exit{fmt.Errorf("following %s: %w", o.Key, err), exitNotFollowed}
	case p.err != nil:
		return exit{p.err, exitNotFollowed}
	}
	return ending(last)
}

// ending is how an instance has ended, nil if well.
func ending(c watcher.Change) error {
	if c.Gone {
		return exit{fmt.Errorf("%s is gone", c.Key), exitGone}
	}
	code := map[status.RuntimeStatus]int{
		status.Failed: exitFailed, status.Terminated: exitTerminated, status.Canceled: exitCanceled,
	}[c.RuntimeStatus]
	if code == 0 {
		return nil
	}
	return exit{fmt.Errorf("%s has ended as %s", c.Key, c.RuntimeStatus), code}
}

// before notes how an instance stands before something is published about it, so that what was its end before is not taken for its
// end now. Where the relay does not say, nothing is published: whoever asks how it ends must not be told how it had.
func before(ctx context.Context, o *watcher.Options) error {
	w, err := watcher.New(*o)
	if err != nil {
		return err
	}
	c, ok, err := w.Latest(ctx)
	if err != nil {
		return exit{fmt.Errorf("nothing was published: %w", err), exitNotFollowed}
	}
	if ok && c.Ended() {
		o.After = c.Version
	}
	return nil
}
