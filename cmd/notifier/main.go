// Command notifier publishes the status of orchestrations to the Service Bus
// topic that relays listen to.
//
//	notifier serve           takes updates in over HTTP
//	notifier send            publishes updates from flags, arguments or standard input
//	notifier watch           follows an instance through the relay until it ends
//	notifier doctor          finds out what keeps updates from arriving
//	notifier check-config    says everything that is wrong with the configuration
//	notifier config          prints the configuration in force, secrets masked
//	notifier healthcheck     asks a replica on this machine whether it is ready
package main

import (
	"context"

	"statusrelay/internal/notifier"
	"statusrelay/internal/shell"
)

func main() {
	service := shell.Service[notifier.Config]{
		Defaults: notifier.Defaults(),
		Base:     notifier.Config.Base,
		Check:    notifier.Config.Check,
		Serve: func(ctx context.Context, c notifier.Config) error {
			n, err := notifier.New(ctx, c, notifier.Options{})
			if err != nil {
				return err
			}
			return n.Run(ctx)
		},
	}
	shell.Main(shell.NewRoot("notifier", "Publishes the status of orchestrations",
		append(service.Commands(), send(), watch(), diagnose())...))
}
