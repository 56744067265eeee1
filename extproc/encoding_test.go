package extproc

import (
	"bytes"
	"compress/gzip"
	"mime/multipart"
	"strings"
	"testing"

	"github.com/warmpath/warmpath/routing"
)

func zip(t *testing.T, plain string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(plain)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadBody_Encodings(t *testing.T) {
	const limit = 1000
	body := `{"model":"m","prompt":"x"}`
	bomb := zip(t, `{"model":"m","x":"`+strings.Repeat("a", 1_000_000)+`"}`)
	packed := zip(t, body)
	for _, tc := range []struct {
		name, encoding string
		body           []byte
		cut            bool
		reason         routing.Reason
		model          string
	}{
		{name: "plain", body: []byte(body), model: "m"},
		{name: "identity", encoding: "identity", body: []byte(body), model: "m"},
		{name: "gzip", encoding: "gzip", body: packed, model: "m"},
		{name: "x-gzip", encoding: "x-gzip", body: packed, model: "m"},
		{name: "not gzip", encoding: "gzip", body: []byte(body), reason: routing.ReasonBadRequest},
		{name: "cut", encoding: "gzip", body: packed[:len(packed)-9], reason: routing.ReasonBadRequest},
		{name: "cut by Envoy", encoding: "gzip", body: packed[:len(packed)-9], cut: true, model: "m"},
		{name: "bomb", encoding: "gzip", body: bomb, reason: routing.ReasonTooLarge},
		{name: "unknown", encoding: "zstd", body: []byte(body), reason: routing.ReasonUnsupported},
		{name: "two encodings", encoding: "gzip, br", body: packed, reason: routing.ReasonUnsupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := readBody(apiCompletion, head{encoding: tc.encoding}, tc.body, nil, tc.cut, limit)
			if tc.reason != routing.ReasonNone {
				if err == nil || err.Reason != tc.reason {
					t.Fatalf("error %v, want %s", err, tc.reason)
				}
				return
			}
			if err != nil || d.model != tc.model {
				t.Fatalf("model %q, error %v; want %q", d.model, err, tc.model)
			}
		})
	}
}

// form returns a multipart body of name, value pairs, the first of them a file.
func form(t testing.TB, fields ...string) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	file, err := w.CreateFormFile("file", "model")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(bytes.Repeat([]byte{0, 13, 10, '-'}, 1000)); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		if err := w.WriteField(fields[i], fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), b.Bytes()
}

func TestReadBody_Forms(t *testing.T) {
	kind, body := form(t, "language", "en", "model", "whisper", "prompt", "x")
	noModel, without := form(t, "language", "en")
	long, tooLong := form(t, "model", strings.Repeat("m", maxModelName+1))
	empty, blank := form(t, "model", "")
	for _, tc := range []struct {
		name, contentType string
		body              []byte
		cut               bool
		model, fault      string
	}{
		{name: "audio", contentType: kind, body: body, model: "whisper"},
		{name: "cut after the model", contentType: kind, body: body[:len(body)-10], model: "whisper"},
		{name: "cut before the model by Envoy", contentType: kind, body: body[:1000], cut: true},
		{name: "cut before the model", contentType: kind, body: body[:1000], fault: "the request names no model"},
		{name: "no model", contentType: noModel, body: without, fault: "the request names no model"},
		{name: "long model", contentType: long, body: tooLong, fault: "1025 bytes or more"},
		{name: "empty model", contentType: empty, body: blank, fault: "0 bytes or more"},
		{name: "a header that is none", contentType: "multipart/form-data; boundary=x", body: []byte("--x\r\n(\r\n"), fault: "is not multipart/form-data"},
		{name: "no boundary", contentType: "multipart/form-data", body: body, fault: "has no boundary"},
		{name: "other boundary", contentType: "multipart/form-data; boundary=x", body: body, fault: "the request names no model"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := readBody(apiForm, head{contentType: tc.contentType}, tc.body, nil, tc.cut, 1<<20)
			if tc.fault != "" {
				if err == nil || !strings.Contains(err.Message, tc.fault) {
					t.Fatalf("error %v, want %q", err, tc.fault)
				}
				return
			}
			if err != nil || d.model != tc.model {
				t.Fatalf("model %q, error %v; want %q", d.model, err, tc.model)
			}
		})
	}
}

func TestAPIOf(t *testing.T) {
	for _, tc := range []struct {
		method, path, mediaType string
		want                    api
	}{
		{"POST", "/v1/chat/completions", "application/json", apiChat},
		{"POST", "/v1/completions", "", apiCompletion},
		{"POST", "/v1/messages", "application/vnd.x+json", apiModel},
		{"POST", "/v1/completions", "text/plain", apiOther},
		{"GET", "/v1/completions", "application/json", apiOther},
		{"POST", "/v1/completions/", "application/json", apiOther},
		{"POST", "/v1/audio/transcriptions", "multipart/form-data", apiForm},
		{"POST", "/v1/audio/transcriptions", "application/json", apiOther},
		{"POST", "/v1/completions", "multipart/form-data", apiOther},
		{"POST", "/metrics", "application/json", apiOther},
	} {
		if got := apiOf(tc.method, tc.path, tc.mediaType); got != tc.want {
			t.Errorf("%s %s %s: %d, want %d", tc.method, tc.path, tc.mediaType, got, tc.want)
		}
	}
}

func FuzzReadBody(f *testing.F) {
	kind, body := form(f, "model", "m")
	f.Add(kind, "", body)
	f.Add("application/json", "gzip", []byte("\x1f\x8b\x08\x00"))
	f.Fuzz(func(t *testing.T, contentType, encoding string, body []byte) {
		for _, kind := range []api{apiForm, apiChat} {
			d, err := readBody(kind, head{contentType: contentType, encoding: encoding}, body, nil, false, 1<<16)
			if err == nil && d.model == "" {
				t.Error("neither a model nor an error")
			}
		}
	})
}
