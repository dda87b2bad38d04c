// A service that makes slugs: GET /?title=What+again
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, slug(r.URL.Query().Get("title")))
	})
	log.Fatal(http.ListenAndServe(os.Getenv("ADDRESS"), nil))
}
