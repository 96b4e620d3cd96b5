package userdata

import (
	"regexp"
	"strconv"
	"strings"
)

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s*)?line (\d+): (.*)$`)

// yamlError splits an error of the YAML parser into line and message.
func yamlError(err error, text []byte) (int, string) {
	message := strings.TrimSpace(err.Error())
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		n, _ := strconv.Atoi(m[1])
		return min(n, 1+strings.Count(string(text), "\n")), m[2]
	}
	return 1, strings.TrimPrefix(message, "yaml: ")
}
