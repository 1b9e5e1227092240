package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/auth"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
)

func keyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "API keys of services"}
	cmd.AddCommand(newKeyCommand())
	return cmd
}

// newKeyCommand makes a key. It asks nobody: what it prints is added to a file.
func newKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Make an API key: print it, once, and the entry for the file that auth.api_keys names",
		Long: `Prints a new API key on the first line, and below it the entry for the file that auth.api_keys
names. The entry has a hash of the key: who loses the key makes another one.

  relay key new --id orders-portal --rights read --hubs orders --claims '{"roles":["operator"]}'`,
		Args: cobra.NoArgs,
	}
	id := cmd.Flags().String("id", "", "id of the key, which is its subject: 1 to 64 of A-Z a-z 0-9 . _ -")
	rights := cmd.Flags().StringSlice("rights", []string{string(auth.Read)}, "what it is good for: read, publish")
	hubs := cmd.Flags().StringSlice("hubs", nil, "hubs that it is good for; all by default")
	claims := cmd.Flags().String("claims", "{}", "claims that the policy's conditions see, as JSON")
	expires := cmd.Flags().String("expires", "", "when it stops being good, such as 2027-01-31T00:00:00Z; never by default")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		k := auth.APIKey{ID: *id, Hubs: *hubs}
		for _, right := range *rights {
			k.Rights = append(k.Rights, auth.Right(right))
		}
		var errs [3]error
		if k.Claims, errs[0] = auth.ParseClaims([]byte(*claims)); errs[0] != nil {
			errs[0] = fmt.Errorf("--claims: %w", errs[0])
		}
		if *expires != "" {
			if k.Expires, errs[1] = time.Parse(time.RFC3339, *expires); errs[1] != nil {
				errs[1] = errors.New("--expires: not a time such as 2027-01-31T00:00:00Z")
			}
		}
		var key string
		key, k, errs[2] = auth.NewAPIKey(k)
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s", key, k.Entry())
		return err
	}
	return cmd
}

// linkCommand signs a link with a key that stands in a file. It asks nobody, and so does not know whether there is
// such an instance, or such an audience.
func linkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "link",
		Short: "Sign a link to the status of one instance, as one audience sees it",
		Long: `Prints a URL that opens the status of one instance, as one audience of the policy sees it, to
everybody who has it, until it expires. It is signed by the first key of the file that
links.keys names, which is the only thing that is asked: docs/links.md has the algorithm.

  relay link --keys links.yaml --url https://status.example --hub orders --id order-4711 --audience customer`,
		Args: cobra.NoArgs,
	}
	keys := cmd.Flags().String("keys", "", "the file that links.keys names")
	base := cmd.Flags().String("url", "", "what callers see in front of every path, as public_url; by default the link begins with the path")
	hub := cmd.Flags().String("hub", "default", "hub of the instance")
	id := cmd.Flags().String("id", "", "id of the instance")
	audience := cmd.Flags().String("audience", "", "audience of the policy whose view the link opens")
	life := cmd.Flags().Duration("expires-in", time.Hour, "how long it is good for; at most links.max_life of the relay")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *keys == "" {
			return errors.New("--keys: required: the path of the file with the keys")
		}
		parsed, err := shell.LinkKeys(*keys, os.ReadFile)
		if err != nil {
			return err
		}
		links := auth.NewLinks(auth.LinkOptions{MaxLife: auth.MaxLinkLife})
		links.SetKeys(parsed)
		instance := status.Key{Hub: *hub, InstanceID: *id}
		signed, err := links.Sign(instance, *audience, time.Now().Add(*life))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), *base+signed.Path(instance))
		return err
	}
	return cmd
}
