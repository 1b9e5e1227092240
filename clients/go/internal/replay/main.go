// Command replay publishes updates that it reads, one JSON object a line, to the Service Bus entity "status"; with the argument "lend" through a sender that it
// lends to the publisher. The relay's tests hold what it sends against what the relay's own publisher sends (internal/e2e/goclient_test.go).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	statusrelay "statusrelay/clients/go"
)

// line is an update whose values stay as they are written: numbers must not lose their last digits.
type line struct {
	statusrelay.Update
	CustomStatus json.RawMessage `json:"customStatus"`
	Output       json.RawMessage `json:"output"`
	Traceparent  string          `json:"traceparent"` // which travels beside an update
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdin, len(os.Args) > 1 && os.Args[1] == "lend"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in io.Reader, lend bool) error {
	options := statusrelay.ServiceBusOptions{
		ConnectionString: os.Getenv("STATUSRELAY_SERVICE_BUS_CONNECTION_STRING"), Entity: "status", Name: "notifier",
	}
	if lend {
		client, err := azservicebus.NewClientFromConnectionString(options.ConnectionString, nil)
		if err != nil {
			return err
		}
		defer client.Close(ctx)
		sender, err := client.NewSender(options.Entity, nil)
		if err != nil {
			return err
		}
		options = statusrelay.ServiceBusOptions{Sender: sender, Name: options.Name}
	}
	publisher, err := statusrelay.NewServiceBus(options)
	if err != nil {
		return err
	}
	var updates []statusrelay.Update
	for lines := json.NewDecoder(in); ; {
		var l line
		if err := lines.Decode(&l); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		u := l.Update
		if u.Traceparent = l.Traceparent; l.CustomStatus != nil {
			u.CustomStatus = l.CustomStatus
		}
		if l.Output != nil {
			u.Output = l.Output
		}
		updates = append(updates, u)
	}
	return errors.Join(publisher.Publish(ctx, updates...), publisher.Close(ctx))
}
