package shell

import (
	"fmt"
	"path/filepath"

	"statusrelay/internal/auth"
)

// APIKeys reads a file of API keys (docs/security.md).
func APIKeys(path string, open func(path string) ([]byte, error)) ([]auth.APIKey, error) {
	text, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("auth.api_keys: %w", err)
	}
	keys, err := auth.ParseAPIKeys(text)
	if err != nil {
		return nil, fmt.Errorf("auth.api_keys %s: %w", path, err)
	}
	return keys, nil
}

// LinkKeys reads a file of link keys (docs/links.md), and the files that it
// names, whose paths start where it is.
func LinkKeys(path string, open func(path string) ([]byte, error)) ([]auth.LinkKey, error) {
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
