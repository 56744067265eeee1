package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
)

// maxBody bounds a request body, in bytes.
const maxBody = 64 << 20

// apiError is an error in the shape of vLLM's OpenAI server.
type apiError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

func badRequest(param, format string, args ...any) *apiError {
	e := &apiError{
		Message: fmt.Sprintf(format, args...),
		Type:    "BadRequestError",
		Code:    http.StatusBadRequest,
	}
	if param != "" {
		e.Param = &param
	}
	return e
}

func modelNotFound(model string) *apiError {
	param := "model"
	return &apiError{
		Message: fmt.Sprintf("The model `%s` does not exist.", model),
		Type:    "NotFoundError",
		Param:   &param,
		Code:    http.StatusNotFound,
	}
}

func unavailable(message string) *apiError {
	return &apiError{
		Message: message,
		Type:    "ServiceUnavailableError",
		Code:    http.StatusServiceUnavailable,
	}
}

// writeError answers with any error; those that are not an apiError come from
// the engine going away.
func writeError(w http.ResponseWriter, err error) {
	var e *apiError
	if !errors.As(err, &e) {
		e = unavailable(err.Error())
	}
	writeJSON(w, e.Code, map[string]*apiError{"error": e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client may have gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(v)
}

// readJSON decodes a request body.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		e := badRequest("", "Unsupported Media Type: Only 'application/json' is allowed")
		e.Code = http.StatusUnsupportedMediaType
		return e
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return badRequest("", "body: %v", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return badRequest("", "body: invalid JSON: %v", err)
	}
	return nil
}
