package query

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"
)

const header = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

// RequestID returns a new one.
func RequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// EC2 writes out as the answer of an EC2 action; a nil out is the plain
// "return true" that most actions without a result have.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Query-Requests.html
func EC2(w http.ResponseWriter, action, version string, out any) {
	b := make([]byte, 0, 1024)
	b = append(b, header...)
	b = open(b, action+`Response xmlns="http://ec2.amazonaws.com/doc/`+version+`/"`)
	b = Append(b, "requestId", RequestID())
	if out == nil {
		b = Append(b, "return", true)
	} else {
		b = inner(b, out)
	}
	b = shut(b, action+"Response")
	send(w, http.StatusOK, b)
}

// EC2Error writes e as EC2 does.
func EC2Error(w http.ResponseWriter, e *Error) {
	b := append([]byte(header), "<Response><Errors><Error>"...)
	b = Append(Append(b, "Code", e.Code), "Message", e.Message)
	b = append(b, "</Error></Errors>"...)
	send(w, e.Status, append(Append(b, "RequestID", RequestID()), "</Response>"...))
}

// Query writes out as the answer of a query-protocol action in the namespace
// ns; out may be nil.
func Query(w http.ResponseWriter, action, ns string, out any) {
	b := append([]byte(header), `<`+action+`Response xmlns="`+ns+`"><`+action+`Result>`...)
	if out != nil {
		b = inner(b, out)
	}
	b = append(b, `</`+action+`Result><ResponseMetadata>`...)
	b = Append(b, "RequestId", RequestID())
	send(w, http.StatusOK, append(b, `</ResponseMetadata></`+action+`Response>`...))
}

// QueryError writes e as the query protocol has it.
func QueryError(w http.ResponseWriter, ns string, e *Error) {
	kind := "Sender"
	if e.Status >= 500 {
		kind = "Receiver"
	}
	b := append([]byte(header), `<ErrorResponse xmlns="`+ns+`"><Error>`...)
	b = Append(Append(Append(b, "Type", kind), "Code", e.Code), "Message", e.Message)
	b = append(b, "</Error>"...)
	send(w, e.Status, append(Append(b, "RequestId", RequestID()), "</ErrorResponse>"...))
}

// inner appends the fields of out without an element around them.
func inner(b []byte, out any) []byte {
	at := len(b)
	b = Append(b, "x", out)
	b = append(b[:at], b[at+len("<x>"):]...)
	return b[:len(b)-len("</x>")]
}

func send(w http.ResponseWriter, status int, b []byte) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that has gone away gets nothing
}
