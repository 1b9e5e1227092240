package redisstore

import (
	"context"
	_ "embed"
	"fmt"

	"statusrelay/internal/status"
)

//go:embed stamp.lua
var stampScript string

// Stamp gives a generation and a sequence to updates that have neither, in their
// order, in one round trip. It returns an error for each that got none, index by index.
//
// A sequence is Redis' clock in microseconds, or one more than the last. The generation
// is that of the instance's run: the one that was given last, or else that of the
// record, or else the clock in milliseconds. A run ends with a terminal status or a purge;
// the next begins with a Pending, or after a purge with any status that is not
// terminal.
func (s *Store) Stamp(ctx context.Context, updates []*status.Update) []error {
	errs := make([]error, len(updates))
	var calls []*call
	var indexes [][]int // of each call's updates
	byKey := make(map[status.Key]int, len(updates))
	for i, u := range updates {
		n, known := byKey[u.Key()]
		if !known {
			n = len(calls)
			byKey[u.Key()] = n
			calls = append(calls, &call{keys: []string{s.stampName(u.Key()), s.name(u.Key())}, args: []any{s.stampLife()}})
			indexes = append(indexes, nil)
		}
		calls[n].args = append(calls[n].args, said(u))
		indexes[n] = append(indexes[n], i)
	}
	s.runAll(ctx, stampScript, calls)
	for n, c := range calls {
		given, err := positions(c, len(indexes[n]))
		for j, i := range indexes[n] {
			if err != nil {
				errs[i] = fmt.Errorf("stamp %s: %w", updates[i].Key(), err)
				continue
			}
			updates[i].Generation, updates[i].Sequence = &given[2*j], &given[2*j+1]
		}
	}
	return errs
}

// positions reads what the script answered for n updates.
func positions(c *call, n int) ([]int64, error) {
	if c.err != nil {
		return nil, c.err
	}
	answer, _ := c.answer.([]any)
	given := make([]int64, 0, len(answer))
	for _, v := range answer {
		if v, ok := v.(int64); ok && v >= 0 && v <= status.MaxInteger {
			given = append(given, v)
		}
	}
	if len(given) != 2*n {
		return nil, fmt.Errorf("stamp.lua answered %T", c.answer)
	}
	return given, nil
}

// said is what an update says of its run, in stamp.lua's words.
func said(u *status.Update) string {
	switch {
	case u.Kind == status.KindPurged:
		return "x"
	case u.RuntimeStatus == "" || u.Kind == status.KindProgress:
		return "-"
	case u.RuntimeStatus == status.Pending:
		return "p"
	case u.RuntimeStatus.Terminal():
		return "e"
	}
	return "r"
}

// stampLife is how long a stamp outlives the next, in milliseconds: longer than the
// record does. When it is gone, the record and the clock take over.
func (s *Store) stampLife() int64 {
	return max(s.options.TTL, s.options.TerminalTTL).Milliseconds() * 9 / 8
}

// stampName is the name of an instance's last stamp, in the slot of its record.
func (s *Store) stampName(k status.Key) string {
	return s.options.Prefix + ":stamp" + s.name(k)[len(s.options.Prefix):]
}
