package relay

import (
	"context"
	"errors"
	"fmt"
	"io"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/shell"
	"statusrelay/internal/telemetry"
)

// Reindex brings the lists up to date with every record in Redis, beside
// replicas that serve or without, and returns how many records there are.
// progress, unless nil, is told now and then how many are done.
func Reindex(ctx context.Context, c Config, log io.Writer, progress func(n int)) (n int, err error) {
	logger, err := telemetry.NewLogger(log, c.Log.Level, c.Log.Format)
	if err != nil {
		return 0, fmt.Errorf("log: %w", err)
	}
	connect, err := c.Redis.Options(shell.NewFiles(logger, nil), logger, nil)
	if err != nil {
		return 0, err
	}
	store, err := redisstore.New(connect)
	if err != nil {
		return 0, fmt.Errorf("redis: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return store.Reindex(ctx, progress)
}
