package shell

import (
	"fmt"
	"path/filepath"

	"statusrelay/internal/auth"
)

// LoadAPIKeys returns the keys of a file of API keys (docs/api-keys.md), and
// replaces them whenever it changes.
func LoadAPIKeys(f *Files, path string, o auth.APIKeyOptions) (*auth.APIKeys, error) {
	keys := auth.NewAPIKeys(o)
	_, err := Load(f, "api_keys", func(open Open) (struct{}, error) {
		text, err := open(path)
		if err != nil {
			return struct{}{}, fmt.Errorf("auth.api_keys: %w", err)
		}
		parsed, err := auth.ParseAPIKeys(text)
		if err != nil {
			return struct{}{}, fmt.Errorf("auth.api_keys %s: %w", path, err)
		}
		keys.SetKeys(parsed)
		return struct{}{}, nil
	})
	return keys, err
}

// LoadLinks returns links that are signed and verified by the keys of a file, which
// replace them whenever it changes.
func LoadLinks(f *Files, path string, o auth.LinkOptions) (*auth.Links, error) {
	links := auth.NewLinks(o)
	_, err := Load(f, "link_keys", func(open Open) (struct{}, error) {
		keys, err := LinkKeys(path, open)
		if err == nil {
			links.SetKeys(keys)
		}
		return struct{}{}, err
	})
	return links, err
}

// LinkKeys reads a file of link keys (docs/links.md), and the files that it
// names, whose paths start where it is.
func LinkKeys(path string, open Open) ([]auth.LinkKey, error) {
	text, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("links.keys: %w", err)
	}
	keys, err := auth.ParseLinkKeys(text, func(named string) ([]byte, error) {
		if !filepath.IsAbs(named) {
			named = filepath.Join(filepath.Dir(path), named)
		}
		return open(named)
	})
	if err != nil {
		return nil, fmt.Errorf("links.keys %s: %w", path, err)
	}
	return keys, nil
}
