package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"statusrelay/internal/dev"
	"statusrelay/internal/telemetry"
)

func devCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine: no cloud, no Docker, no Redis",
		Long: `Runs a Service Bus endpoint, Redis, an identity provider, sample orchestrations, a notifier
and a relay in one process, on loopback, and prints how to reach them. For trying
the product and for tests: nothing is kept and nothing is protected.`,
		Args: cobra.NoArgs,
	}
	addr := cmd.Flags().String("addr", "127.0.0.1:8080", "address of the dashboard and the relay; port 0 takes a free one")
	noSamples := cmd.Flags().Bool("no-samples", false, "run no sample orchestrations")
	readyJSON := cmd.Flags().Bool("ready-json", false, "print one line of JSON once everything serves, and nothing else on standard output")
	level := cmd.Flags().String("log-level", "warn", "least level that is logged: debug, info, warn, error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := telemetry.NewLogger(cmd.ErrOrStderr(), *level, "text")
		if err != nil {
			return err
		}
		stack, err := dev.New(cmd.Context(), dev.Options{
			Addr: *addr, Fixed: !strings.HasSuffix(*addr, ":0"), NoSamples: *noSamples, Logger: log,
		})
		if err != nil {
			return fmt.Errorf("%w (--addr 127.0.0.1:0 takes a free port)", err)
		}
		out := cmd.OutOrStdout()
		return stack.Run(cmd.Context(), func(info dev.Info) {
			if *readyJSON {
				_ = json.NewEncoder(out).Encode(info)
				return
			}
			_, _ = io.WriteString(out, greeting(info))
		})
	}
	return cmd
}

// greeting says how to use what runs, in lines that can be pasted.
func greeting(i dev.Info) string {
	id, hub := "order-4711", "samples"
	if len(i.Samples) > 0 {
		id, hub = i.Samples[0].InstanceID, i.Samples[0].Hub
	}
	socket := strings.Replace(i.Relay, "http://", "ws://", 1)
	return fmt.Sprintf(`
  statusrelay, everything on this machine. Ctrl-C stops it.

  Dashboard    %[1]s
  Relay        %[2]s
  Notifier     %[3]s
  Service Bus  %[4]s
               topic %[5]s, subscription %[6]s

Tokens for 24 hours. An operator sees everything; the customer is u-1001 and sees percent, step and
message of what has the label owner=u-1001 (internal/policy/development.yaml).

export OPERATOR=%[7]s
export CUSTOMER=%[8]s
export PUBLISHER=%[9]s

Publish an update, over HTTP or straight to the topic

curl -si %[3]s/v1/updates -H "Authorization: Bearer $PUBLISHER" -d '{"hub":"demo","instanceId":"my-1","runtimeStatus":"Running","customStatus":{"percent":40,"step":"pack","internalCost":7},"labels":{"owner":"u-1001"}}'
export STATUSRELAY_SERVICE_BUS_CONNECTION_STRING='%[4]s'
go run ./cmd/notifier send --hub demo --id my-1 --status Running --custom '{"percent":60,"step":"ship","internalCost":9}'

Read it; the same again with the ETag of the answer is a 304, until something changes that this caller sees

curl -si %[2]s/v1/hubs/demo/instances/my-1 -H "Authorization: Bearer $OPERATOR"
curl -si %[2]s/v1/hubs/demo/instances/my-1 -H "Authorization: Bearer $CUSTOMER"
ETAG=$(curl -si %[2]s/v1/hubs/demo/instances/my-1 -H "Authorization: Bearer $CUSTOMER" | sed -n 's/^Etag: //p' | tr -d '\r')
curl -si %[2]s/v1/hubs/demo/instances/my-1 -H "Authorization: Bearer $CUSTOMER" -H "If-None-Match: $ETAG"

List what the customer may read and is running; wait until the instance changes, half a minute at most

curl -s "%[2]s/v1/hubs/%[11]s/instances?label.owner=u-1001&runtimeStatus=Running" -H "Authorization: Bearer $CUSTOMER"
curl -si %[2]s/v1/hubs/demo/instances/my-1 -H "Authorization: Bearer $CUSTOMER" -H "If-None-Match: $ETAG" -H "Prefer: wait=30"

Stream all of the customer's orchestrations, as they come, change and leave (Ctrl-C ends it)

curl -sN "%[2]s/v1/hubs/%[11]s/instances?label.owner=u-1001" -H "Authorization: Bearer $CUSTOMER" -H "Accept: text/event-stream"

Watch a sample: each change arrives as a status frame (needs Node; Ctrl-C ends it)

npx -y wscat -c %[12]s/v1/watch -s status.v1.json -H "Authorization: Bearer $OPERATOR" -w 600 \
  -x '{"type":"watch","ref":"1","instances":[{"hub":"%[11]s","instanceId":"%[10]s"}]}'

`, i.Dashboard, i.Relay, i.Notifier, i.ServiceBus, i.Topic, i.Subscription,
		i.Tokens.Operator, i.Tokens.Customer, i.Tokens.Publisher, id, hub, socket)
}
