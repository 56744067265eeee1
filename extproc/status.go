package extproc

import (
	"encoding/json"
	"net/http"

	"github.com/warmpath/warmpath/routing"
)

// statusOf is the one place where a reason becomes an HTTP status.
func statusOf(r routing.Reason) int {
	switch r {
	case routing.ReasonBadRequest, routing.ReasonUnknownStrategy:
		return http.StatusBadRequest
	case routing.ReasonModelNotFound:
		return http.StatusNotFound
	case routing.ReasonTooLarge:
		return http.StatusRequestEntityTooLarge
	case routing.ReasonUnsupported:
		return http.StatusUnsupportedMediaType
	case routing.ReasonQueueFull, routing.ReasonQueueTimeout:
		return http.StatusTooManyRequests
	case routing.ReasonNoEndpoint, routing.ReasonTimeout:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// errorBody is an error as the OpenAI API reports it (OpenAI API reference,
// error codes): clients take message and code from it.
type errorBody struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	} `json:"error"`
}

// encodeError returns e as a JSON body. The code is the name of the reason.
func encodeError(e *routing.Error) []byte {
	var b errorBody
	b.Error.Message = e.Message
	b.Error.Code = e.Reason.String()
	b.Error.Type = "invalid_request_error"
	switch status := statusOf(e.Reason); {
	case status == http.StatusTooManyRequests:
		b.Error.Type = "rate_limit_error"
	case status >= http.StatusInternalServerError:
		b.Error.Type = "server_error"
	}
	if e.Param != "" {
		b.Error.Param = &e.Param
	}
	out, err := json.Marshal(&b)
	if err != nil { // strings always encode
		panic(err)
	}
	return out
}
