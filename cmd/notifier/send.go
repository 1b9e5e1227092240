package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/notifier"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
)

// sendConfig says where send publishes to.
type sendConfig struct {
	DefaultHub string           `koanf:"default_hub" usage:"hub of updates that name none"`
	ServiceBus shell.ServiceBus `koanf:"service_bus"`
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
		Use:   "send [update...]",
		Short: "Publish updates from flags, arguments or standard input",
		Long: `Publishes updates straight to the Service Bus topic.

One update from flags, or JSON documents as arguments, or, with neither, NDJSON on
standard input: one update or CloudEvents event a line. Each is judged by itself:
what is refused is reported with its number and does not keep the others from
being published. The exit code is 1 when any was refused.

The connection string comes from STATUSRELAY_SERVICE_BUS_CONNECTION_STRING or a file.`,
		Example: `  notifier send --id order-4711 --status Running --custom '{"percent":40}'
  notifier send '{"hub":"orders","instanceId":"order-4711","customStatus":{"percent":60}}'
  notifier send < updates.ndjson`,
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
	flags.StringVar(&f.output, "output", "", "output, as JSON")
	flags.StringVar(&f.failureType, "failure-type", "", "type of the failure")
	flags.StringVar(&f.failureMessage, "failure-message", "", "message of the failure")
	flags.Int64Var(&f.generation, "generation", 0, "start of the execution in unix milliseconds; default: the current execution")
	flags.Int64Var(&f.sequence, "sequence", 0, "position of the update, such as unix microseconds; default: in the order of arrival")
	flags.StringToStringVar(&f.labels, "label", nil, "label as name=value, may be repeated")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := set.Load()
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
		return publish(cmd.Context(), c, documents, cmd.InOrStdin(), cmd.ErrOrStderr())
	}
	return cmd
}

// document is the update that the flags describe, nil when none is set.
func (f *fields) document(cmd *cobra.Command) ([]byte, error) {
	update := make(map[string]any)
	var errs []error
	raw := func(flag, text string) any {
		if !json.Valid([]byte(text)) {
			errs = append(errs, fmt.Errorf("--%s: not JSON (a text needs its quotes: '\"text\"')", flag))
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
		{"output", "output", func() any { return raw("output", f.output) }},
		{"generation", "generation", func() any { return f.generation }},
		{"sequence", "sequence", func() any { return f.sequence }},
		{"label", "labels", func() any { return f.labels }},
	} {
		if cmd.Flags().Changed(s.flag) {
			update[s.field] = s.value()
		}
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

// publish sends the documents, or the lines of in when there are none.
func publish(ctx context.Context, c sendConfig, documents [][]byte, in io.Reader, report io.Writer) (err error) {
	p, err := servicebus.NewPublisher(servicebus.Options{
		ConnectionString: c.ServiceBus.ConnectionString.Reveal(), Namespace: c.ServiceBus.Namespace, Topic: c.ServiceBus.Topic,
	})
	if err != nil {
		return fmt.Errorf("service bus: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, p.Close(closing))
	}()
	line := progressLine(report)
	s := notifier.Sender{
		Publisher: p, DefaultHub: c.DefaultHub,
		Refused:  func(number int, err error) { line("refused update %d: %v\n", number, err) },
		Progress: func(sent, refused int) { line("%d published, %d refused", sent, refused) },
	}
	var sent, refused int
	if len(documents) > 0 {
		sent, refused, err = s.Documents(ctx, documents)
	} else {
		sent, refused, err = s.Lines(ctx, in)
	}
	line("%d published, %d refused\n", sent, refused)
	if err == nil && refused > 0 {
		err = errRefused
	}
	return err
}

// progressLine returns how to report: on a terminal, a text without a line end
// is replaced by the next one; elsewhere it is left out.
func progressLine(w io.Writer) func(format string, args ...any) {
	terminal := false
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return func(format string, args ...any) {
		switch {
		case terminal:
			_, _ = fmt.Fprintf(w, "\r\x1b[K"+format, args...)
		case strings.HasSuffix(format, "\n"):
			_, _ = fmt.Fprintf(w, format, args...)
		}
	}
}
