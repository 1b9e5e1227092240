// Command activities runs the same orchestrations as command tap, but here activities report progress themselves, also between the engine's checkpoints, and
// the tap says only what state an instance is in. README.md has the lines to start it with.
package main

import (
	"context"

	"github.com/microsoft/durabletask-go/backend/sqlite"

	statusrelay "statusrelay/clients/go"
	"statusrelay/examples/durabletask/demo"
	"statusrelay/examples/durabletask/shop"
	"statusrelay/examples/durabletask/statustap"
)

func main() {
	demo.Main("activities", func(ctx context.Context, o demo.Options, p demo.Publisher) ([]demo.Instance, error) {
		engine := sqlite.NewSqliteBackend(sqlite.NewSqliteOptions(""), demo.Quiet()) // in memory
		tapped := &statustap.Tap{Backend: engine, Hub: o.Hub, Publish: p.Publish, Labels: shop.Labels, Log: o.Log, LifecycleOnly: true}
		report := func(ctx context.Context, w shop.Work, at statusrelay.Position, s shop.Status) {
			err := p.Publish(ctx, statusrelay.Update{
				Hub: o.Hub, InstanceID: w.InstanceID, Name: w.Orchestrator, Position: at, CustomStatus: s,
			})
			if err != nil { // the next report repairs it
				o.Log.ErrorContext(ctx, "progress not published", "instanceId", w.InstanceID, "error", err)
			}
		}
		return demo.Run(ctx, o, tapped, shop.Activity(report))
	})
}
