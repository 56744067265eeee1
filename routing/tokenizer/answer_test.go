package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// collected is a sink that keeps everything.
type collected struct {
	ids      []kvindex.TokenID
	expected int
}

func (c *collected) expect(n int) { c.expected = n }

func (c *collected) take(ids []kvindex.TokenID) { c.ids = append(c.ids, ids...) }

func readAnswer(src io.Reader) ([]kvindex.TokenID, error) {
	var a answerReader
	var c collected
	if err := a.read(src, 1<<20, &c); err != nil {
		return nil, err
	}
	if c.expected != 0 && c.expected != len(c.ids) {
		return nil, fmt.Errorf("%d ids were announced, %d came", c.expected, len(c.ids))
	}
	return c.ids, nil
}

func TestReadAnswer_RefusesNonsense(t *testing.T) {
	for _, answer := range []string{
		``, `{`, `[]`, `null`, `{"count":1}`, `{"tokens":null,"count":0}`, `{"tokens":[1.5],"count":1}`, `{"tokens":[-1],"count":1}`,
		`{"tokens":["1"],"count":1}`, `{"tokens":[[1]],"count":1}`, `{"tokens":[2147483648],"count":1}`, `{"tokens":[1],"count":2}`, `{"tokens":[1,2`,
		`{"tokens":[true],"count":1}`, `{"tokens":[1e3],"count":1}`, `{"tokens":[1,],"count":1}`, `{"tokens":[01],"count":1}`, `{"tokens":[1],"count":1e0}`,
		`{"tokens":[1]}x`, `{"tokens":[1],}`, `{"tokens":[1],"tokens":[1]}`, `{"tokens":[1],"token_ids":[1]}`, `[{"token_ids":[1]},{"token_ids":[2]}]`,
		`{"tokens":[1],"x":"` + "\n" + `"}`, `{"tokens":[1],"x":"\x"}`, `{"tokens":[1],"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`,
	} {
		if got, err := readAnswer(strings.NewReader(answer)); err == nil {
			t.Errorf("read(%.40s) = %v, want an error", answer, got)
		}
	}
	var a answerReader
	if err := a.read(strings.NewReader(`{"tokens":[1,2,3]}`), 17, &collected{}); err != errTooLarge {
		t.Errorf("18 bytes with a limit of 17: %v, want %v", err, errTooLarge)
	}
	if err := a.read(io.MultiReader(strings.NewReader(`{"tokens":[1`), iotest.ErrReader(io.ErrUnexpectedEOF)), 1<<20, &collected{}); err != io.ErrUnexpectedEOF {
		t.Errorf("an answer that broke off: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

// Every way to write an answer is understood, however it arrives.
func TestReadAnswer_Accepts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfN(rapid.Uint32Range(0, maxTokenID), 0, 300).Draw(t, "ids")
		other := rapid.SampledFrom([]string{`null`, `"a\"]}\u00e9"`, `-1.5e+3`, `[[],{"tokens":[9]},0]`, `{}`, `true`, `false`}).Draw(t, "other")
		name := rapid.SampledFrom([]string{"tokens", "token_ids"}).Draw(t, "name")
		members := []string{fmt.Sprintf("%q:%s", "other", other), fmt.Sprintf(`"count":%d`, len(ids))}
		list, err := json.Marshal(ids)
		if err != nil || ids == nil {
			list = []byte("[]")
		}
		members = append(members, fmt.Sprintf("%q:%s", name, list))
		answer := "{" + strings.Join(rapid.Permutation(members).Draw(t, "members"), ",") + "}"
		if rapid.Bool().Draw(t, "list") {
			answer = "[" + answer + "]"
		}
		if rapid.Bool().Draw(t, "indent") {
			var b bytes.Buffer
			if err := json.Indent(&b, []byte(answer), "", " "); err != nil {
				t.Fatal(err)
			}
			answer = b.String() + "\n"
		}
		want := make([]kvindex.TokenID, 0, len(ids))
		for _, id := range ids {
			want = append(want, kvindex.TokenID(id))
		}
		for name, src := range map[string]io.Reader{
			"whole": strings.NewReader(answer), "byte by byte": iotest.OneByteReader(strings.NewReader(answer)), "with EOF": iotest.DataErrReader(strings.NewReader(answer)),
		} {
			if got, err := readAnswer(src); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%s: read(%s) = %v, %v", name, answer, got, err)
			}
		}
	})
}

// What is accepted is JSON, and the ids are those that encoding/json reads.
func FuzzReadAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"count":2,"tokens":[1,2]}`, `{"tokens":[],"count":0}`, `{"tokens":[ 7 , 8 ]}`, `{"count":-1,"tokens":[0]}`, `{"tokens":[1],"tokens":[2]}`,
		`[{"token_ids":[1, 2],"features":null}]`, `{"tokens":[1],"x":[{"a":-0.5e1},"\u12ab",true]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		got, err := readAnswer(bytes.NewReader(answer))
		byByte, err2 := readAnswer(iotest.OneByteReader(bytes.NewReader(answer)))
		if (err == nil) != (err2 == nil) || !slices.Equal(got, byByte) {
			t.Fatalf("read(%q) = %v, %v; byte by byte %v, %v", answer, got, err, byByte, err2)
		}
		if err != nil {
			return
		}
		if !json.Valid(answer) {
			t.Fatalf("accepted %q, which is not JSON", answer)
		}
		object := answer
		if list := []json.RawMessage{}; json.Unmarshal(answer, &list) == nil {
			object = list[0]
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(object, &members); err != nil {
			t.Fatal(err)
		}
		matched := false
		for _, name := range []string{"tokens", "token_ids"} {
			var want []kvindex.TokenID
			if json.Unmarshal(members[name], &want) == nil && slices.Equal(got, want) {
				matched = true
			}
		}
		if !matched && !bytes.Contains(answer, []byte(`\u`)) { // a later key in escapes may hide it
			t.Fatalf("read(%q) = %v, which encoding/json does not find", answer, got)
		}
	})
}
