package extproc

import (
	"net/http"
	"strings"
	"time"

	"github.com/warmpath/warmpath/routing"
)

// ReadRequest reads an HTTP request as this package reads one that Envoy
// shows it, for those who explain decisions. body is whole; limit bounds what
// a compressed one may unpack to. The request borrows body.
func ReadRequest(method, path string, headers http.Header, body []byte, limit int, now time.Time) (routing.Request, *routing.Error) {
	if len(body) > limit {
		return routing.Request{}, tooLarge(limit)
	}
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	media, _, _ := strings.Cut(headers.Get("Content-Type"), ";")
	h := head{
		method: method, path: path, contentType: headers.Get("Content-Type"), mediaType: strings.ToLower(strings.TrimSpace(media)),
		encoding: strings.ToLower(strings.TrimSpace(headers.Get("Content-Encoding"))),
	}
	var d document
	if kind := apiOf(h.method, h.path, h.mediaType); kind != apiOther {
		var err *routing.Error
		if d, err = readBody(kind, h, body, nil, false, limit); err != nil {
			return routing.Request{}, err
		}
	}
	return routing.Request{
		Arrived: now, ID: headers.Get("X-Request-Id"), Path: path, Model: d.model, Strategy: headers.Get(headerStrategy),
		Profile: headers.Get("Config-Profile"), Filter: headers.Get("External-Filter"),
		Prompt: d.prompt, Stream: d.stream, User: headers.Get("User"), Session: headers.Get("X-Session-Id"), BodyBytes: len(body),
	}, nil
}

// StatusOf returns the HTTP status that a request is refused with.
func StatusOf(r routing.Reason) int { return statusOf(r) }
