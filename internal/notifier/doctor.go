package notifier

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/doctor"
	"statusrelay/internal/policy"
)

const (
	configuration = "configuration"
	ingestIssuers = "ingest-issuers"
	ingestKeys    = "ingest-keys"
)

// Examine reports what is wrong with the configuration, of which mistakes is what could not be read, and with the credentials that
// POST /v1/updates takes. Who only sends needs neither policy nor issuers: what serve would miss is no mistake then.
func (c Config) Examine(ctx context.Context, mistakes error) []doctor.Finding {
	serves := c.Policy != "" || c.Auth.EntraTenant != "" || c.Auth.IssuersFile != "" || c.Auth.APIKeys != "" || len(c.Auth.Issuers) > 0
	err := errors.Join(mistakes, c.ServiceBus.Validate())
	if serves {
		err = errors.Join(mistakes, c.Validate(), c.Check())
	}
	valid := doctor.Finding{Check: configuration, Outcome: doctor.OK, Detail: "valid"}
	if !serves {
		valid.Detail = "valid for sending; nothing is set for serve"
	}
	if err != nil {
		valid = doctor.Finding{
			Check: configuration, Outcome: doctor.Fail, Detail: strings.ReplaceAll(err.Error(), "\n", "; "),
			Remedy: "docs/configuration.md lists every setting; notifier config prints those in force",
		}
	}
	if !serves {
		const why = "not checked: neither a policy nor issuers nor API keys are set"
		return []doctor.Finding{valid, {Check: ingestIssuers, Outcome: doctor.Skip, Detail: why}, {Check: ingestKeys, Outcome: doctor.Skip, Detail: why}}
	}
	return []doctor.Finding{valid, c.examineIssuers(ctx), c.examineKeys(time.Now())}
}

func (c Config) examineIssuers(ctx context.Context) doctor.Finding {
	tried, err := c.Auth.TryIssuers(ctx)
	switch {
	case err != nil:
		return doctor.Finding{
			Check: ingestIssuers, Outcome: doctor.Fail, Detail: strings.ReplaceAll(err.Error(), "\n", "; "),
			Remedy: "see that this machine reaches the issuer's discovery document (/.well-known/openid-configuration) and the keys that it names",
		}
	case len(tried) == 0:
		return doctor.Finding{Check: ingestIssuers, Outcome: doctor.Skip, Detail: "not checked: there are none"}
	}
	return doctor.Finding{Check: ingestIssuers, Outcome: doctor.OK, Detail: "the keys can be had of " + strings.Join(tried, ", ")}
}

// examineKeys says which API keys may publish. Whether one is known where it is used, only its holder can try.
func (c Config) examineKeys(now time.Time) doctor.Finding {
	skipped := func(why string) doctor.Finding {
		return doctor.Finding{Check: ingestKeys, Outcome: doctor.Skip, Detail: "not checked: " + why}
	}
	if c.Auth.APIKeys == "" {
		return skipped("there is no file of API keys")
	}
	text, err := os.ReadFile(c.Auth.APIKeys)
	if err != nil {
		return skipped("see configuration")
	}
	keys, err := auth.ParseAPIKeys(text)
	if err != nil {
		return skipped("see configuration")
	}
	text, err = os.ReadFile(c.Policy)
	if err != nil {
		return skipped("see configuration")
	}
	rules, err := policy.Parse(text)
	if err != nil {
		return skipped("see configuration")
	}
	var good, bad []string
	for _, k := range keys {
		switch grant := (&auth.Principal{Grant: &auth.Grant{Rights: k.Rights, Hubs: k.Hubs}}); {
		case !slices.Contains(k.Rights, auth.Publish):
		case !k.Expires.IsZero() && !now.Before(k.Expires):
			bad = append(bad, k.ID+" has expired")
		case !grant.May(auth.Publish, c.DefaultHub):
			good = append(good, k.ID+" (to other hubs)")
		case !rules.MayPublish(k.Claims, c.DefaultHub, nil):
			bad = append(bad, fmt.Sprintf("%s is admitted to hub %s by no publishers entry of the policy", k.ID, c.DefaultHub))
		default:
			good = append(good, k.ID)
		}
	}
	if len(bad) > 0 || len(good) == 0 {
		return doctor.Finding{
			Check: ingestKeys, Outcome: doctor.Warn, Detail: fmt.Sprintf("may publish: %s; %s", or(strings.Join(good, ", "), "none"), or(strings.Join(bad, ", "), "no key has the right")),
			Remedy: "docs/api-keys.md: rights, hubs and expiry of a key; docs/policy.md: publishers. Updates with labels may be admitted where others are not",
		}
	}
	return doctor.Finding{Check: ingestKeys, Outcome: doctor.OK, Detail: "may publish: " + strings.Join(good, ", ")}
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
