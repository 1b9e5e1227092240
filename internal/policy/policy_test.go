package policy_test

import (
	"testing"

	"statusrelay/internal/policy"
)

func TestDevelopmentPolicyParses(t *testing.T) {
	if _, err := policy.Parse(policy.Development()); err != nil {
		t.Fatal(err)
	}
}
