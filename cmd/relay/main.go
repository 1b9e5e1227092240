// Command relay serves the status of orchestrations: it keeps the newest
// filtered status of each in Redis, answers reads from it and pushes every
// change to watchers.
//
//	relay dev             everything on this machine, to try it
//	relay serve           one replica
//	relay check-config    says everything that is wrong with the configuration
//	relay config          prints the configuration in force, secrets masked
//	relay healthcheck     asks a replica on this machine whether it is ready
//	relay reindex         puts back into the lists what is missing there
//	relay key new         makes an API key for a service
//	relay link            signs a link to the status of one instance
package main

import (
	"context"

	"statusrelay/internal/relay"
	"statusrelay/internal/shell"
)

func main() {
	service := shell.Service[relay.Config]{
		Defaults: relay.Defaults(),
		Base:     relay.Config.Base,
		Check:    relay.Config.Check,
		Serve: func(ctx context.Context, c relay.Config) error {
			r, err := relay.New(ctx, c, relay.Options{})
			if err != nil {
				return err
			}
			return r.Run(ctx)
		},
	}
	shell.Main(shell.NewRoot("relay", "Serves the status of orchestrations, pushed instead of polled",
		append(service.Commands(), service.Command("reindex", reindexShort, reindex), devCommand(), keyCommand(), linkCommand())...))
}
