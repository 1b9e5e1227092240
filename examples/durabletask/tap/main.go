// Command tap runs orchestrations on a real engine, and publishes what the engine commits: every change of state and of custom status, without polling
// and without a line in any orchestration. README.md has the lines to start it with.
package main

import (
	"context"

	"github.com/microsoft/durabletask-go/backend/sqlite"

	"statusrelay/examples/durabletask/demo"
	"statusrelay/examples/durabletask/shop"
	"statusrelay/examples/durabletask/statustap"
)

func main() {
	demo.Main("tap", func(ctx context.Context, o demo.Options, p demo.Publisher) ([]demo.Instance, error) {
		engine := sqlite.NewSqliteBackend(sqlite.NewSqliteOptions(""), demo.Quiet()) // in memory
		tapped := &statustap.Tap{Backend: engine, Hub: o.Hub, Publish: p.Publish, Labels: shop.Labels, Log: o.Log}
		return demo.Run(ctx, o, tapped, shop.Activity(shop.Silent))
	})
}
