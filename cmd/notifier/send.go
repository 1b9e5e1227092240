package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/notifier"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
	"statusrelay/internal/watcher"
)

// sendConfig says where send publishes to.
type sendConfig struct {
	DefaultHub string           `koanf:"default_hub" usage:"hub of updates that name none"`
	ServiceBus shell.ServiceBus `koanf:"service_bus"`
	RelayConfig
}

// Validate reports every mistake.
func (c sendConfig) Validate() error { return c.ServiceBus.Validate() }

// errRefused ends the program with an exit code when an update was refused; each
// was reported when it was.
var errRefused = errors.New("not every update was published")

// fields are the flags of one update.
type fields struct {
	hub, id, name, kind, status string
	custom, output              string
	failureType, failureMessage string
	generation, sequence        int64
	labels                      map[string]string
}

func send() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "send [update...]",
		Short:             "Publish updates from flags, arguments or standard input",
		ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Publishes updates straight to the Service Bus topic.

One update from flags, or JSON documents as arguments, or, with neither, NDJSON on
standard input: one update or CloudEvents event a line. Each is judged by itself:
what is refused is reported with its number and does not keep the others from
being published. The exit code is 1 when any was refused.

With --watch all updates are of one instance, which is then followed through the relay
until it ends; while the relay cannot be asked nothing is published.

With --output json every result is a line of JSON on standard output:
{"type":"refused","index":0,…}, {"type":"sent","accepted":1,"refused":0}, and, as in
the frames of a WebSocket, {"type":"status",…} and {"type":"gone",…}.

The connection string comes from STATUSRELAY_SERVICE_BUS_CONNECTION_STRING or a file, the
token or API key for the relay from STATUSRELAY_RELAY_TOKEN or a file. How to have the
shell complete commands and values: notifier completion --help.

` + exitCodes,
		Example: `  notifier send --id order-4711 --status Running --custom '{"percent":40}'
  notifier send '{"hub":"orders","instanceId":"order-4711","customStatus":{"percent":60}}'
  notifier send < updates.ndjson
  notifier send --id order-4711 --status Running --watch --relay https://status.example.com`,
	}
	set := settings.Bind(cmd, sendConfig{DefaultHub: notifier.Defaults().DefaultHub, ServiceBus: notifier.Defaults().ServiceBus})
	var f fields
	flags := cmd.Flags()
	flags.StringVar(&f.hub, "hub", "", "hub of the instance")
	flags.StringVar(&f.id, "id", "", "instance id")
	flags.StringVar(&f.name, "name", "", "orchestrator name")
	flags.StringVar(&f.kind, "kind", "", "snapshot, progress, lifecycle or purged")
	flags.StringVar(&f.status, "status", "", "runtime status, such as Running or Completed")
	flags.StringVar(&f.custom, "custom", "", "custom status, as JSON")
	flags.StringVar(&f.failureType, "failure-type", "", "type of the failure")
	flags.StringVar(&f.failureMessage, "failure-message", "", "message of the failure")
	flags.Int64Var(&f.generation, "generation", 0, "start of the execution in unix milliseconds; default: the current execution")
	flags.Int64Var(&f.sequence, "sequence", 0, "position of the update, such as unix microseconds; default: in the order of arrival")
	flags.StringToStringVar(&f.labels, "label", nil, "label as name=value, may be repeated")
	form := bindForm(cmd, "form of the results: text or json. Any JSON: the output of the orchestration", &f.output)
	complete(cmd, "kind", string(status.KindSnapshot), string(status.KindProgress), string(status.KindLifecycle), string(status.KindPurged))
	complete(cmd, "status", string(status.Pending), string(status.Running), string(status.Completed), string(status.Failed),
		string(status.Canceled), string(status.Terminated), string(status.Suspended), string(status.ContinuedAsNew))
	watched := flags.Bool("watch", false, "follow the instance through the relay until it ends; needs --relay")
	var w following
	w.bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := set.Load()
		if *watched {
			err = errors.Join(err, c.check())
		}
		if err != nil {
			return err
		}
		documents := make([][]byte, len(args))
		for i, a := range args {
			documents[i] = []byte(a)
		}
		update, err := f.document(cmd)
		switch {
		case err != nil:
			return err
		case update != nil && len(args) > 0:
			return errors.New("an update in flags and updates as arguments: one of the two")
		case update != nil:
			documents = [][]byte{update}
		}
		s := sending{config: c, printer: form.printer(cmd)}
		if *watched {
			s.watch = &w
		}
		return s.run(cmd.Context(), documents, cmd.InOrStdin())
	}
	return cmd
}

// document is the update that the flags describe, nil when none is set.
func (f *fields) document(cmd *cobra.Command) ([]byte, error) {
	update := make(map[string]any)
	var errs []error
	raw := func(flag, text string) any {
		if !json.Valid([]byte(text)) {
			errs = append(errs, fmt.Errorf("--%s: not JSON (a text needs its quotes: '\"text\"')", flag)) // of --output: nor text, nor json
			return nil
		}
		return json.RawMessage(text)
	}
	for _, s := range []struct {
		flag, field string
		value       func() any
	}{
		{"hub", "hub", func() any { return f.hub }},
		{"id", "instanceId", func() any { return f.id }},
		{"name", "name", func() any { return f.name }},
		{"kind", "kind", func() any { return f.kind }},
		{"status", "runtimeStatus", func() any { return f.status }},
		{"custom", "customStatus", func() any { return raw("custom", f.custom) }},
		{"generation", "generation", func() any { return f.generation }},
		{"sequence", "sequence", func() any { return f.sequence }},
		{"label", "labels", func() any { return f.labels }},
	} {
		if cmd.Flags().Changed(s.flag) {
			update[s.field] = s.value()
		}
	}
	if f.output != "" {
		update["output"] = raw("output", f.output)
	}
	if f.failureType != "" || f.failureMessage != "" {
		update["failure"] = map[string]string{"type": f.failureType, "message": f.failureMessage}
	}
	if len(update) > 0 && f.id == "" {
		errs = append(errs, errors.New("--id: required"))
	}
	if len(update) == 0 || len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	update["lastUpdatedTime"] = time.Now().UTC().Format(time.RFC3339Nano)
	return json.Marshal(update)
}

// sending is one run of send.
type sending struct {
	config  sendConfig
	printer *printer
	watch   *following      // nil: nothing is watched
	follow  watcher.Options // of the instance that is
}

// run sends the documents, or the lines of in when there are none, and then watches, if so told.
func (s *sending) run(ctx context.Context, documents [][]byte, in io.Reader) error {
	sent, refused, err := s.publish(ctx, documents, in)
	s.printer.sent(sent, refused, err)
	switch {
	case err != nil:
		return err
	case refused > 0:
		return errRefused
	case s.watch == nil:
		return s.printer.err
	case sent == 0:
		return errors.New("nothing was published that could be watched")
	}
	return s.watch.run(ctx, s.follow, s.printer)
}

func (s *sending) publish(ctx context.Context, documents [][]byte, in io.Reader) (sent, refused int, err error) {
	bus := s.config.ServiceBus
	p, err := servicebus.NewPublisher(servicebus.Options{
		ConnectionString: bus.ConnectionString.Reveal(), Namespace: bus.Namespace, Topic: bus.Topic,
	})
	if err != nil {
		return 0, 0, fmt.Errorf("service bus: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, p.Close(closing))
	}()
	sender := notifier.Sender{
		Publisher: p, DefaultHub: s.config.DefaultHub,
		Refused:  s.printer.refused,
		Progress: s.printer.progress,
	}
	if s.watch != nil {
		sender.Single = func(ctx context.Context, key status.Key) error {
			s.follow = s.config.options(key)
			return before(ctx, &s.follow)
		}
	}
	if len(documents) > 0 {
		return sender.Documents(ctx, documents)
	}
	return sender.Lines(ctx, in)
}
