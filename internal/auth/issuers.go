package auth

import "errors"

// ParseIssuers reads a file of issuers (docs/authentication.md). Its issuers, of which there is at least one, must differ from
// each other and from those that are configured elsewhere. Its error is a *FileError with every mistake.
func ParseIssuers(file []byte, elsewhere []Issuer) ([]Issuer, error) {
	var f listFile
	var issuers []Issuer
	taken := make(map[string]string, len(elsewhere)) // by URL: by whom
	for _, is := range elsewhere {
		taken[is.URL] = "an issuer that is configured elsewhere, too"
	}
	entries := f.read(file, "issuers")
	for _, entry := range entries {
		members := f.members(entry, "url", "audiences", "algorithms", "jwks_url", "require_one_of", "optional_not_before")
		var is Issuer
		if n, ok := f.required(entry, members, "url"); ok {
			if url, ok := f.text(n); ok {
				if err := checkIssuer(url); err != nil {
					f.complain(n, "%v", err)
				} else if by := taken[url]; by != "" {
					f.complain(n, "%s", by)
				}
				is.URL, taken[url] = url, "the URL of another issuer"
			}
		}
		if n, ok := f.required(entry, members, "audiences"); ok {
			is.Audiences = f.some(n, notEmpty)
		}
		if n, ok := members["algorithms"]; ok {
			is.Algorithms = f.some(n, checkAlgorithm)
		}
		if n, ok := members["jwks_url"]; ok {
			if url, ok := f.text(n); ok {
				if err := checkEndpoint(url, true); err != nil {
					f.complain(n, "%v", err)
				}
				is.JWKSURL = url
			}
		}
		if n, ok := members["require_one_of"]; ok {
			is.RequireOneOf = f.some(n, notEmpty)
		}
		if n, ok := members["optional_not_before"]; ok {
			is.OptionalNotBefore = f.boolean(n)
		}
		issuers = append(issuers, is)
	}
	if len(entries) == 0 && len(f.wrong) == 0 {
		// Whoever takes the last one out would have a file that says nothing.
		return nil, &FileError{[]Mistake{{1, 1, "no issuer: without any, configure no file of issuers"}}}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return issuers, nil
}

func notEmpty(text string) error {
	if text == "" {
		return errors.New("an empty text")
	}
	return nil
}
