package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/shell"
)

// Redis says where records are kept, and for how long.
type Redis struct {
	shell.Redis

	IndexLabels []string      `koanf:"index_labels" usage:"labels by which lists are kept, so that a list by one of them reads no others"`
	TTL         time.Duration `koanf:"ttl" usage:"how long a record is kept after its last change"`
	TerminalTTL time.Duration `koanf:"terminal_ttl" usage:"how long it is kept when its orchestration has ended"`
}

// Validate reports every mistake, each with its key.
func (c Redis) Validate() error {
	var errs []error
	if len(c.Addrs) == 0 {
		errs = append(errs, errors.New("redis.addrs: required"))
	}
	for n, label := range c.IndexLabels {
		if label == "" || slices.Contains(c.IndexLabels[:n], label) {
			errs = append(errs, fmt.Errorf("redis.index_labels: %q is empty or repeated", label))
		}
	}
	if c.TTL <= 0 {
		errs = append(errs, errors.New("redis.ttl: not positive"))
	}
	if c.TerminalTTL <= 0 {
		errs = append(errs, errors.New("redis.terminal_ttl: not positive"))
	}
	return errors.Join(append(errs, c.Redis.Validate())...)
}

// Options reads the files that are named, and returns every mistake in them.
func (c Redis) Options(f *shell.Files, log *slog.Logger, metrics prometheus.Registerer) (redisstore.Options, error) {
	o, err := c.Redis.Options(f, log, metrics)
	o.TTL, o.TerminalTTL = c.TTL, c.TerminalTTL
	o.IndexLabels = append([]string{}, c.IndexLabels...) // none stay none
	return o, err
}
