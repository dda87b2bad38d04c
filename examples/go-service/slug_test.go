package main

import (
	"strings"
	"testing"
)

func TestSlug(t *testing.T) {
	got := slug("  What, *again*? ")
	if want := strings.Join([]string{"what", "again"}, string(separator)); got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}
