package redisstore_test

import (
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
