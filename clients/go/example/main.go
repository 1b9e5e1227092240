// Command example is a service that works through an order and reports how far it is. Beside "go run ./cmd/relay dev" and with the variables that
// it prints:
//
//	STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=… go run ./example                        straight to the topic
//	PUBLISHER=… go run ./example -notifier http://127.0.0.1:8081                        over HTTP
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	statusrelay "statusrelay/clients/go"
)

// publisher is what this program needs: a *statusrelay.ServiceBus or a *statusrelay.Notifier.
type publisher interface {
	Publish(ctx context.Context, updates ...statusrelay.Update) error
	Close(ctx context.Context) error
}

func main() {
	notifier := flag.String("notifier", "", "URL of a notifier, with the token in $PUBLISHER; else Service Bus, by $STATUSRELAY_SERVICE_BUS_CONNECTION_STRING")
	id := flag.String("id", "my-order", "instance id of the order, in hub demo")
	pace := flag.Duration("pace", time.Second, "time that a step takes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *notifier, *id, *pace); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, notifier, id string, pace time.Duration) error {
	p, err := connect(notifier)
	if err != nil {
		return err
	}
	return errors.Join(work(ctx, p, id, pace), p.Close(context.WithoutCancel(ctx)))
}

func connect(notifier string) (publisher, error) {
	connection, token := os.Getenv("STATUSRELAY_SERVICE_BUS_CONNECTION_STRING"), os.Getenv("PUBLISHER")
	switch {
	case notifier != "" && token != "":
		return statusrelay.NewNotifier(statusrelay.NotifierOptions{URL: notifier, APIKey: token, Name: "example"})
	case notifier == "" && connection != "":
		return statusrelay.NewServiceBus(statusrelay.ServiceBusOptions{ConnectionString: connection, Entity: "status", Name: "example"})
	}
	return nil, errors.New("$STATUSRELAY_SERVICE_BUS_CONNECTION_STRING, or -notifier and $PUBLISHER: required (relay dev prints them)")
}

// work is the only source of this instance's status, so that it says both how far the order is and what state it is in.
func work(ctx context.Context, p publisher, id string, pace time.Duration) error {
	started := time.Now()
	execution := statusrelay.Started(started)
	report := func(status statusrelay.RuntimeStatus, percent int, step string) error {
		return p.Publish(ctx, statusrelay.Update{
			Hub: "demo", InstanceID: id, Name: "Order", Position: execution.Next(),
			RuntimeStatus: status, CustomStatus: map[string]any{"percent": percent, "step": step},
			CreatedTime: started, Labels: map[string]string{"owner": "u-1001"},
		})
	}
	steps := []string{"reserve", "charge", "pack", "ship"}
	for i, step := range steps {
		if err := report(statusrelay.Running, 100*i/len(steps), step); err != nil {
			return err
		}
		select {
		case <-time.After(pace): // the work
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return report(statusrelay.Completed, 100, "done")
}
