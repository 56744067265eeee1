package main

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// setting is one leaf of the configuration.
type setting struct {
	// Key is the path of yaml keys, such as extproc.listen; a field of a list's
	// elements has [] after the list, pool.static.endpoints[].name.
	Key  string
	Help string
	// Value is the field itself, or an example of it inside a list.
	Value reflect.Value
	// Loose settings can be set by an environment variable and a flag as well:
	// scalars and lists of them, outside of lists.
	Loose bool
}

// Env returns the name of the setting's environment variable.
func (s setting) Env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.Key, ".", "_"))
}

// settings returns every leaf of cfg in the order of declaration.
func settings(cfg *Config) []setting {
	return appendSettings(nil, reflect.ValueOf(cfg).Elem(), "", true)
}

func appendSettings(dst []setting, v reflect.Value, prefix string, loose bool) []setting {
	for _, f := range structFields(v) {
		key := joinPath(prefix, f.key)
		switch {
		case isScalar(f.value):
			dst = append(dst, setting{key, f.help, f.value, loose})
		case f.value.Kind() == reflect.Struct:
			dst = appendSettings(dst, f.value, key, loose)
		case f.value.Kind() == reflect.Slice && !isScalar(reflect.New(f.value.Type().Elem()).Elem()):
			dst = appendSettings(dst, reflect.New(f.value.Type().Elem()).Elem(), key+"[]", false)
		default:
			dst = append(dst, setting{key, f.help, f.value, loose && f.value.Kind() == reflect.Slice})
		}
	}
	return dst
}

// structField is one yaml key of a struct.
type structField struct {
	key, help string
	value     reflect.Value
}

// structFields returns the yaml keys of struct v, those of inlined structs as
// if they were its own.
func structFields(v reflect.Value) []structField {
	var fields []structField
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			fields = append(fields, structFields(v.Field(i))...)
		case name != "" && name != "-":
			fields = append(fields, structField{name, f.Tag.Get("help"), v.Field(i)})
		}
	}
	return fields
}

func joinPath(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// isScalar tells whether v, which is addressable, is written as one word.
func isScalar(v reflect.Value) bool {
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return true
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Slice, reflect.Map:
		return false
	}
	return true
}

// setText sets a loose setting from the text of an environment variable or a
// flag: a scalar, or a list of scalars with commas between them.
func setText(v reflect.Value, text string) error {
	if isScalar(v) {
		return setScalar(v, text)
	}
	list := reflect.MakeSlice(v.Type(), 0, 0)
	if strings.TrimSpace(text) != "" {
		for word := range strings.SplitSeq(text, ",") {
			e := reflect.New(v.Type().Elem()).Elem()
			if err := setScalar(e, strings.TrimSpace(word)); err != nil {
				return err
			}
			list = reflect.Append(list, e)
		}
	}
	v.Set(list)
	return nil
}

// setScalar sets v from its text. Errors tell what is wrong with the text and
// what to write instead, but not the field.
func setScalar(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
		return nil
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		if err != nil {
			if _, bare := strconv.ParseFloat(text, 64); bare == nil {
				return fmt.Errorf("%q has no unit; use for example %ss or %sms", text, text, text)
			}
			return fmt.Errorf("%q is not a duration; use for example 500ms, 2s or 1m30s", text)
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(text, 0, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number that fits", text)
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 0, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number from 0 that fits", text)
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		x, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a number", text)
		}
		v.SetFloat(x)
	default:
		return fmt.Errorf("%q: a %s cannot be configured", text, v.Type())
	}
	return nil
}
