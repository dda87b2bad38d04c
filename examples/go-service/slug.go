package main

import (
	"strings"
	"unicode"
)

const separator = '-'

// slug makes of a title what can stand in an address.
func slug(title string) string {
	words := strings.FieldsFunc(strings.ToLower(title), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	return strings.Join(words, string(separator))
}
