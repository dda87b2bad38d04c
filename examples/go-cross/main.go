// Says which platform it is for.
package main

import (
	"os"
	"runtime"
)

func main() {
	os.Stdout.WriteString("made for " + runtime.GOOS + "/" + runtime.GOARCH + "\n")
}
