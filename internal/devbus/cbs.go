package devbus

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// tokens is the $cbs node: clients put a token there for each entity before they attach to it,
// and learn there whether the entity exists.
type tokens struct{}

func (tokens) serve(c *conn, r request) reply {
	if op := r.operation(); op != "put-token" {
		return reply{status: 400, description: "unknown operation"}
	}
	if status := c.bus.faults.tokenStatus(); status != 0 {
		return reply{status: status, description: "as told"}
	}
	audience, _ := r.ApplicationProperties["name"].(string)
	n, p := c.bus.find(strings.TrimSuffix(canonical(audience), managementSuffix))
	if p != nil {
		return reply{status: 404, description: p.description, condition: p.condition}
	}
	if c.bus.key != "" {
		token, _ := r.Value.(string)
		if err := checkToken(token, audience, c.bus.key, time.Now()); err != nil {
			return reply{status: 401, description: err.Error(), condition: "amqp:unauthorized-access"}
		}
		c.granted[n] = true
	}
	return reply{status: 202, description: "Accepted"}
}

// checkToken checks a shared access signature: that key signed it, that it has not expired, and
// that it is for the audience or something above it.
func checkToken(token, audience, key string, now time.Time) error {
	fields, ok := strings.CutPrefix(token, "SharedAccessSignature ")
	if !ok {
		return errors.New("InvalidSignature: not a shared access signature")
	}
	part := make(map[string]string)
	for f := range strings.SplitSeq(fields, "&") {
		name, value, _ := strings.Cut(f, "=")
		part[name] = value
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(part["sr"] + "\n" + part["se"]))
	signature, err := url.QueryUnescape(part["sig"])
	if err != nil || !hmac.Equal([]byte(signature), []byte(base64.StdEncoding.EncodeToString(mac.Sum(nil)))) {
		return errors.New("InvalidSignature: The token has an invalid signature.")
	}
	until, err := strconv.ParseInt(part["se"], 10, 64)
	if err != nil || now.Unix() >= until {
		return errors.New("ExpiredToken: The token is expired.")
	}
	resource, err := url.QueryUnescape(part["sr"])
	if err != nil || !strings.HasPrefix(withoutScheme(audience), withoutScheme(resource)) {
		return errors.New("InvalidAudience: The token is for something else.")
	}
	return nil
}

// withoutScheme ends in a slash, so that one path is a prefix of another only where it is above.
func withoutScheme(u string) string {
	if _, rest, ok := strings.Cut(u, "://"); ok {
		u = rest
	}
	return strings.ToLower(strings.TrimSuffix(u, "/")) + "/"
}
