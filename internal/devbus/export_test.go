package devbus

import "time"

// Redeliver gives the bytes in which a receiver gets a message that was sent as raw.
func Redeliver(raw []byte) ([]byte, error) {
	p, err := parsePayload(raw)
	if err != nil {
		return nil, err
	}
	p = p.merged([]pair{{"DeadLetterReason", appendString(nil, "r")}})
	d := delivery{payload: p, sequence: 1, topicSeq: 1, enqueued: time.Unix(0, 0), until: time.Unix(60, 0), tokenInMap: true}
	return d.append(nil), nil
}
