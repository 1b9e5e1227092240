package redisstore_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"statusrelay/internal/storetest"
)

func TestContractOnMiniredis(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		server := miniredis.RunT(t)
		return storetest.Harness{Addr: server.Addr(), Pass: server.FastForward}
	})
}

func TestContractOnRedis(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		server := storetest.StartRedis(t)
		return storetest.Harness{Addr: server.Addr, Real: server}
	})
}

// The commands of deploy/redis/users.acl are all that the contract takes. Who
// sends them here is the user that nobody logs in as; what is refused is in the
// server's log.
func TestContractUnderTheShippedCommands(t *testing.T) {
	users := slices.Concat(storetest.Administrator(),
		[]string{"--user", "default", "on", "nopass", "allkeys", "allchannels"}, storetest.ShippedCommands(t))
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		server := storetest.StartRedis(t, users...)
		t.Cleanup(func() {
			log, err := storetest.Do(server.Addr, "ACL", "LOG")
			if err == nil && strings.Contains(log, "\nreason\ncommand\n") {
				t.Errorf("refused:\n%s", log)
			}
		})
		return storetest.Harness{Addr: server.Addr, Real: server}
	})
}
