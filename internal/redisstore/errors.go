package redisstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

// passing lists the codes of Redis' error replies that mean "not now": a
// failover, a server that starts, is full or is being reconfigured. Refused
// credentials are among them because rotating a password must not dead-letter
// what arrives meanwhile.
var passing = [...]string{
	"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS",
	"MISCONF", "OOM", "BUSY", "UNKILLABLE", "MOVED", "ASK",
	"NOAUTH", "WRONGPASS", "NOPERM",
	"EXECABORT", // a transaction of which a command was refused for one of these reasons
	"ERR max number of clients reached",
}

// classify makes every error that may pass a status.ErrUnavailable: of the
// error replies those above, and all that is no reply (refused, reset, timed
// out, closed, no free connection).
func classify(err error) error {
	if err == nil {
		return nil
	}
	if reply := redis.Error(nil); errors.As(err, &reply) && !passes(reply.Error()) {
		return err
	}
	return fmt.Errorf("%w: %w", status.ErrUnavailable, err)
}

func passes(reply string) bool {
	for _, code := range passing {
		// Redis 6 wraps what a command in a script answered: "ERR Error running
		// script (call to f_…): @user_script:1: -READONLY You can't write …".
		if strings.HasPrefix(reply, code) || strings.Contains(reply, ": -"+code+" ") {
			return true
		}
	}
	return false
}

// answerError is the error of one command in a pipeline that failed as a whole
// or in part. A connection that could not be set up, because of a password for
// one, leaves go-redis' commands without an answer and without an error.
func answerError(answered bool, own, pipeline error) error {
	switch {
	case own != nil:
		return classify(own)
	case answered:
		return nil
	case pipeline != nil:
		return classify(pipeline)
	}
	return fmt.Errorf("%w: redis gave no answer", status.ErrUnavailable)
}
