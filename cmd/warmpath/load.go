package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/warmpath/warmpath/routing/pool"
)

const envPrefix = "WARMPATH_"

// fault is one thing wrong with the configuration. A list of them is the one
// error that loading gives.
type fault struct {
	// where is the file and line, the environment variable or the flag.
	where string
	// line orders faults of the file; 0 for others.
	line int
	// text starts with the field's path.
	text string
}

type faults []fault

// Error returns one line a fault.
func (fs faults) Error() string {
	var b strings.Builder
	for i, f := range fs {
		if i > 0 {
			b.WriteByte('\n')
		}
		// A flag is already called what its field is.
		fmt.Fprintf(&b, "%s: %s", f.where, strings.TrimPrefix(f.text, strings.TrimPrefix(f.where, "--")+": "))
	}
	return b.String()
}

// override is a setting given as a flag.
type override struct{ key, value string }

// loader collects what is set where, and what is wrong with it.
type loader struct {
	file string
	// origin is where each path was set: of a field, and of every list,
	// element and section on the way to it.
	origin map[string]fault
	faults faults
	// broken are paths with a fault of form: what validation says about the
	// value left in them would only repeat it.
	broken map[string]bool
}

// load reads the configuration: the defaults, overridden by the file, by
// WARMPATH_ variables in env (each NAME=value) and by flags, in this order.
// The error is of type faults and has all of them. content is what the file says.
func load(file string, env []string, flags []override) (cfg Config, content []byte, err error) {
	content, err = pool.ReadFileBounded(file)
	if err != nil {
		return Config{}, nil, faults{{where: "--config", text: err.Error()}}
	}
	cfg, err = parse(file, content, env, flags)
	return cfg, content, err
}

// parse is load with the file's content at hand.
func parse(file string, data []byte, env []string, flags []override) (Config, error) {
	cfg := DefaultConfig()
	if len(data) > pool.MaxFile {
		return cfg, faults{{where: file, text: fmt.Sprintf("more than %d bytes, which no configuration takes; name the right file in --config, and put many endpoints into pool.file.path", pool.MaxFile)}}
	}
	l := &loader{file: file, origin: map[string]fault{}, broken: map[string]bool{}}
	if !l.readYAML(data, &cfg) {
		return cfg, l.faults // what is missing may be in the part that cannot be read
	}
	byKey, byEnv := map[string]setting{}, map[string]setting{}
	for _, s := range settings(&cfg) {
		if s.Loose {
			byKey[s.Key], byEnv[s.Env()] = s, s
		}
	}
	l.readEnv(env, byEnv)
	for _, o := range flags {
		s, ok := byKey[o.key]
		if !ok {
			l.fail(fault{where: "--" + o.key}, o.key, "no such setting"+didYouMean(o.key, slices.Sorted(maps.Keys(byKey))))
			continue
		}
		l.set(s, fault{where: "--" + o.key}, o.value)
	}
	for _, err := range unjoin(cfg.Validate()) {
		l.invalid(err)
	}
	if len(l.faults) == 0 {
		return cfg, nil
	}
	slices.SortStableFunc(l.faults, func(a, b fault) int { return cmp.Compare(a.line, b.line) })
	return cfg, l.faults
}

func (l *loader) at(line int) fault {
	return fault{where: fmt.Sprintf("%s:%d", l.file, line), line: line}
}

// fail records a fault of form at the field with that path.
func (l *loader) fail(at fault, path, text string) {
	at.text = text
	if path != "" {
		at.text = path + ": " + text
		l.broken[path] = true
	}
	l.faults = append(l.faults, at)
}

// set overrides s by text that comes from at.
func (l *loader) set(s setting, at fault, text string) {
	l.origin[s.Key] = at
	delete(l.broken, s.Key)
	if err := setText(s.Value, text); err != nil {
		l.fail(at, s.Key, err.Error())
	}
}

var fieldPath = regexp.MustCompile(`^[a-z0-9_]+(\[\d+\])*(\.[a-z0-9_]+(\[\d+\])*)*: `)

// invalid records a fault of meaning, next to where its field or else the
// nearest list or section around it was set.
func (l *loader) invalid(err error) {
	text := err.Error()
	path := strings.TrimSuffix(fieldPath.FindString(text), ": ")
	at := fault{where: l.file, text: text}
	for p := path; p != ""; p = p[:max(0, strings.LastIndexAny(p, ".["))] {
		if l.broken[p] {
			return
		}
		if o, ok := l.origin[p]; ok {
			at.where, at.line = o.where, o.line
			break
		}
	}
	l.faults = append(l.faults, at)
}

// kubernetesLink matches the variables that Kubernetes adds to every container
// for each Service of its namespace. A Service called warmpath gives a
// WARMPATH_SERVICE_HOST, which must not stop this program from starting.
var kubernetesLink = regexp.MustCompile(`^WARMPATH_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// serviceOrProtocolPort matches those of them that end in PORT and hold a
// number instead of a URL.
var serviceOrProtocolPort = regexp.MustCompile(`_SERVICE_PORT$|_PORT_\d+_[A-Z]+_PORT$`)

// foreign tells whether a variable with our prefix is none of our settings but
// has a reason to be there.
func foreign(name, value string) bool {
	if strings.HasPrefix(name, envPrefix+"TEST_") { // of this repository's tests
		return true
	}
	if !kubernetesLink.MatchString(name) {
		return false
	}
	switch {
	case strings.HasSuffix(name, "_SERVICE_HOST"):
		_, err := netip.ParseAddr(value)
		return err == nil
	case strings.HasSuffix(name, "_PORT") && !serviceOrProtocolPort.MatchString(name):
		return strings.Contains(value, "://") // WARMPATH_ADMIN_PORT=9090 is a mistake, not a link
	}
	return true
}

func (l *loader) readEnv(env []string, settings map[string]setting) {
	for _, kv := range slices.Sorted(slices.Values(env)) {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		s, ok := settings[name]
		switch {
		case ok:
			l.set(s, fault{where: name}, value)
		case !foreign(name, value):
			l.fail(fault{where: name}, "", "no such setting"+didYouMean(name, slices.Sorted(maps.Keys(settings))))
		}
	}
}

// syntaxLine finds the line in the yaml package's errors.
var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): `)

// readYAML sets what data sets. It returns false if data is not one document.
func (l *loader) readYAML(data []byte, cfg *Config) bool {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return true // an empty file sets nothing
	}
	if err == nil && dec.Decode(&second) == nil {
		l.fail(l.at(second.Line), "", "a second document (---); write one document a file")
		return false
	}
	if err != nil {
		at, text := fault{where: l.file}, strings.TrimPrefix(err.Error(), "yaml: ")
		if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
			at.where, text = l.file+":"+m[1], err.Error()[len(m[0]):]
		}
		l.fail(at, "", "not YAML: "+text)
		return false
	}
	l.decode(doc.Content[0], reflect.ValueOf(cfg).Elem(), "", 0)
	return true
}

// maxDepth is far above what any configuration nests; an alias that contains
// itself reaches it.
const maxDepth = 32

// decode sets v from n. A node without a value leaves the default.
func (l *loader) decode(n *yaml.Node, v reflect.Value, path string, depth int) {
	line := n.Line
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if depth > maxDepth {
		l.fail(l.at(line), path, "nested too deeply; does an alias contain itself?")
		return
	}
	if path != "" {
		l.origin[path] = l.at(line)
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	switch {
	case isScalar(v):
		l.decodeScalar(n, v, path, line)
	case v.Kind() == reflect.Struct:
		l.decodeStruct(n, v, path, line, depth)
	case v.Kind() == reflect.Map:
		l.decodeMap(n, v, path, line, depth)
	default:
		l.decodeList(n, v, path, line, depth)
	}
}

func (l *loader) decodeScalar(n *yaml.Node, v reflect.Value, path string, line int) {
	if n.Kind != yaml.ScalarNode {
		l.fail(l.at(line), path, kindName(n)+", where one value is expected")
		return
	}
	if n.Tag == "!!binary" {
		l.fail(l.at(line), path, "!!binary is not supported; write the value itself")
		return
	}
	if err := setScalar(v, n.Value); err != nil {
		l.fail(l.at(line), path, err.Error())
	}
}

func (l *loader) decodeStruct(n *yaml.Node, v reflect.Value, path string, line, depth int) {
	fields := structFields(v)
	var keys []string
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	if n.Kind != yaml.MappingNode {
		l.fail(l.at(line), path, fmt.Sprintf("%s, where keys are expected (%s)", kindName(n), strings.Join(keys, ", ")))
		return
	}
	for key, value := range l.pairs(n, path) {
		i := slices.Index(keys, key.Value)
		if i < 0 {
			full := joinPath(path, key.Value)
			text := "no such key"
			if near := nearest(key.Value, keys); near != "" {
				text += "; did you mean " + near + "?"
				l.broken[joinPath(path, near)] = true
			} else {
				text += "; known here: " + strings.Join(keys, ", ")
			}
			l.fail(l.at(key.Line), full, text)
			continue
		}
		l.decode(value, fields[i].value, joinPath(path, keys[i]), depth+1)
	}
}

func (l *loader) decodeMap(n *yaml.Node, v reflect.Value, path string, line, depth int) {
	if n.Kind != yaml.MappingNode {
		l.fail(l.at(line), path, kindName(n)+", where keys of your choice are expected, {key: value}")
		return
	}
	m := reflect.MakeMap(v.Type())
	for key, value := range l.pairs(n, path) {
		e := reflect.New(v.Type().Elem()).Elem()
		l.decode(value, e, joinPath(path, key.Value), depth+1)
		m.SetMapIndex(reflect.ValueOf(key.Value), e)
	}
	v.Set(m)
}

func (l *loader) decodeList(n *yaml.Node, v reflect.Value, path string, line, depth int) {
	if n.Kind != yaml.SequenceNode {
		l.fail(l.at(line), path, kindName(n)+", where a list is expected, [one, two]")
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, e := range n.Content {
		l.decode(e, list.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
	}
	v.Set(list)
}

// pairs yields the keys and values of a mapping, without those that are a
// fault by themselves.
func (l *loader) pairs(n *yaml.Node, path string) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
				l.fail(l.at(key.Line), path, "keys must be plain words; merging with << is not supported")
				continue
			}
			if first, dup := seen[key.Value]; dup {
				l.fail(l.at(key.Line), joinPath(path, key.Value), fmt.Sprintf("set before, in line %d; remove one of them", first))
				continue
			}
			seen[key.Value] = key.Line
			if !yield(key, n.Content[i+1]) {
				return
			}
		}
	}
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", n.Value)
}

// asFaults returns the faults in an error of load.
func asFaults(err error) faults {
	var fs faults
	errors.As(err, &fs)
	return fs
}
