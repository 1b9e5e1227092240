package durablehttp

import (
	"errors"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/status"
)

// Whatever a function app answers: it is a valid update, or an error that holds nothing
// of it.
func FuzzBody(f *testing.F) {
	for _, text := range []string{
		`{"name":"P","instanceId":"i","runtimeStatus":"Running","input":{"s3cret":1},"customStatus":{"a":1},"output":null,"createdTime":"2026-01-02T03:04:05Z","lastUpdatedTime":"2026-01-02T03:04:05Z"}`,
		`{"Name":"P","InstanceId":"i","CreatedTime":"2026-01-02T03:04:05.0000000Z","Input":null,"Output":"s3cret","RuntimeStatus":3,"CustomStatus":null,"History":null}`,
		`{"name":"P","instanceId":"i","runtimeStatus":3,"createdAt":"2026-01-02T03:04:05+00:00","serializedCustomStatus":"{\"a\":1}","failureDetails":{"errorType":"T","errorMessage":"s3cret"}}`,
		`[{"instanceId":"i","runtimeStatus":"s3cret"}]`, `<html>s3cret</html>`, `{"instanceId":"i"`, `null`, ``, `{"instanceId":"i","customStatus":1}`,
	} {
		f.Add([]byte(text))
	}
	now := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text []byte) {
		check := func(u *status.Update) {
			if err := u.Validate(now); err != nil || u.RuntimeStatus == "" {
				t.Errorf("accepted %s as %+v: %v", text, u, err)
			}
		}
		u, err := newBody(strings.NewReader(string(text)), 1<<20).one(now)
		if err == nil {
			check(u)
		} else if _, known := errors.AsType[errBody](err); !known && !errors.Is(err, status.ErrInvalid) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %v", text, err)
		}
		if _, err := newBody(strings.NewReader(string(text)), 1<<20).each(now, check); err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %v", text, err)
		}
	})
}
