// Package demo runs the shop on an engine and lets things happen to its orchestrations: people decide, instances are suspended, terminated, purged and
// started again.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	statusrelay "statusrelay/clients/go"
)

// Publisher is a *statusrelay.ServiceBus or a *statusrelay.Notifier.
type Publisher interface {
	Publish(ctx context.Context, updates ...statusrelay.Update) error
	Close(ctx context.Context) error
}

// Options say what to run.
type Options struct {
	Hub   string
	Count int           // of each orchestration
	Pace  time.Duration // of one step
	Log   *slog.Logger  // what could not be published
}

// Instance is what the engine itself says of one in the end.
type Instance struct {
	ID            string `json:"instanceId"`
	Purged        bool   `json:"purged,omitempty"` // the engine does not know it
	Name          string `json:"name,omitempty"`
	Owner         string `json:"owner,omitempty"` // as the input says
	RuntimeStatus string `json:"runtimeStatus,omitempty"`
	CustomStatus  string `json:"customStatus,omitempty"`
	Output        string `json:"output,omitempty"`
	Failure       string `json:"failure,omitempty"`
}

// Main reads flags and environment, runs a program of a name and prints what became of its instances.
func Main(name string, run func(ctx context.Context, o Options, p Publisher) ([]Instance, error)) {
	o := Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flag.StringVar(&o.Hub, "hub", "demo", "hub that the instances appear in; the dashboard of relay dev shows all of demo")
	flag.IntVar(&o.Count, "count", 3, "how many of each orchestration to run")
	flag.DurationVar(&o.Pace, "pace", 700*time.Millisecond, "time that a step takes, about")
	notifier := flag.String("notifier", "", "URL of a notifier, with its token in $PUBLISHER (default: Service Bus, $STATUSRELAY_SERVICE_BUS_CONNECTION_STRING)")
	topic := flag.String("topic", "status", "topic or queue of Service Bus")
	asJSON := flag.Bool("json", false, "print what became of the instances as lines of JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, err := connect(name, *notifier, *topic)
	if err == nil {
		err = show(ctx, o, p, *asJSON, run)
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "Stopped before the end.")
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func show(ctx context.Context, o Options, p Publisher, asJSON bool, run func(context.Context, Options, Publisher) ([]Instance, error)) error {
	fmt.Fprintf(os.Stderr, "Orchestrations run for about %v. Watch them in hub %s.\n", 45*o.Pace, o.Hub)
	all, err := run(ctx, o, p)
	if err := errors.Join(err, p.Close(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	if asJSON {
		out := json.NewEncoder(os.Stdout)
		for _, i := range all {
			if err := out.Encode(i); err != nil {
				return err
			}
		}
		return nil
	}
	return table(all)
}

func table(all []Instance) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, i := range append([]Instance{{ID: "INSTANCE", RuntimeStatus: "THE ENGINE SAYS"}}, all...) {
		if i.Purged {
			i.RuntimeStatus = "(purged)"
		}
		if _, err := fmt.Fprintf(w, "%s\t%s\t%s\n", i.ID, strings.TrimPrefix(i.RuntimeStatus, "ORCHESTRATION_STATUS_"), i.CustomStatus); err != nil {
			return err
		}
	}
	return w.Flush()
}

func connect(name, notifier, topic string) (Publisher, error) {
	connection, token := os.Getenv("STATUSRELAY_SERVICE_BUS_CONNECTION_STRING"), os.Getenv("PUBLISHER")
	switch {
	case notifier != "" && token != "":
		return statusrelay.NewNotifier(statusrelay.NotifierOptions{URL: notifier, APIKey: token, Name: name})
	case notifier == "" && connection != "":
		return statusrelay.NewServiceBus(statusrelay.ServiceBusOptions{ConnectionString: connection, Entity: topic, Name: name})
	}
	return nil, errors.New("paste the export lines that `relay dev` prints: $STATUSRELAY_SERVICE_BUS_CONNECTION_STRING for Service Bus, $PUBLISHER for -notifier")
}
