package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/relay"
)

const reindexShort = "Put back into the lists what is missing there: after one was lost, or a label was added to redis.index_labels"

// reindex says how far it is, to people who wait, once a second.
func reindex(cmd *cobra.Command, c relay.Config) error {
	var said time.Time
	n, err := relay.Reindex(cmd.Context(), c, cmd.ErrOrStderr(), func(n int) {
		if now := time.Now(); now.Sub(said) >= time.Second {
			said = now
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%d records\n", n)
		}
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d records are in their lists\n", n)
	return err
}
