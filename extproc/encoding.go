package extproc

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

func tooLarge(limit int) *routing.Error {
	e := badRequest("", "the request body is larger than the limit of %d bytes (extproc.max_body_bytes)", limit)
	e.Reason = routing.ReasonTooLarge
	return e
}

// readBody reads a body of any kind but apiOther. limit bounds what a
// compressed body may unpack to. The body goes to the engine as it came.
// Token ids are kept in ids, unless that is nil.
func readBody(kind api, h head, body []byte, ids *[]kvindex.TokenID, truncated bool, limit int) (document, *routing.Error) {
	switch h.encoding {
	case "", "identity":
	case "gzip", "x-gzip":
		plain, err := gunzip(body, truncated, limit)
		if err != nil {
			return document{}, err
		}
		body = plain
	default:
		e := badRequest("", "content-encoding %q is not understood; send the body plain or as gzip", h.encoding)
		e.Reason = routing.ReasonUnsupported
		return document{}, e
	}
	if kind == apiForm {
		return parseForm(h.contentType, body, truncated)
	}
	return parseJSON(kind, body, ids, truncated)
}

// gunzip unpacks at most limit bytes.
func gunzip(body []byte, truncated bool, limit int) ([]byte, *routing.Error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, badRequest("", "the request body is not gzip, as its content-encoding says: %s", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	switch {
	case len(plain) > limit:
		return nil, tooLarge(limit)
	case err != nil && !(truncated && errors.Is(err, io.ErrUnexpectedEOF)):
		return nil, badRequest("", "the request body is not gzip, as its content-encoding says: %s", err)
	}
	return plain, nil
}

// maxModelName bounds the model of a form.
const maxModelName = 1024

// parseForm finds the field model of a multipart/form-data body (RFC 7578). A
// form that cannot be read has no model: the engine will say what is wrong.
func parseForm(contentType string, body []byte, truncated bool) (document, *routing.Error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" {
		return document{}, badRequest("", "the content-type of the form has no boundary")
	}
	form := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := form.NextRawPart()
		switch {
		case truncated && err != nil:
			return document{}, nil
		case errors.Is(err, io.EOF):
			return document{}, badRequest("model", "the request names no model; set the form field model to the name of a served model")
		case err != nil:
			return document{}, badRequest("", "the request body is not multipart/form-data: %s", err)
		}
		if part.FormName() != "model" || part.FileName() != "" {
			continue
		}
		value, err := io.ReadAll(io.LimitReader(part, maxModelName+1))
		switch {
		case err != nil && truncated:
			return document{}, nil
		case err != nil:
			return document{}, badRequest("model", "the form field model cannot be read: %s", err)
		case len(value) == 0 || len(value) > maxModelName:
			return document{}, badRequest("model", "the form field model has %d bytes or more; use the name of a served model", len(value))
		}
		return document{model: string(value)}, nil
	}
}
