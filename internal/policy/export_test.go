package policy

// Project projects a JSON value by pointers, for the fuzz test, which cannot
// afford a policy file per value.
func Project(pointers []string, raw []byte) ([]byte, error) {
	var set fields
	for _, s := range pointers {
		pointer, err := parsePointer(s)
		if err != nil {
			return nil, err
		}
		set.add(pointer)
	}
	return new(projector).project(&set, raw), nil
}
