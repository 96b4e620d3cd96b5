package cloud

import (
	"encoding/json"
	"encoding/xml"
	"net/http"

	"github.com/lecafe/lecafe/lab/cloud/s3"
)

// protocol is how a service writes errors.
type protocol int

const (
	restXML   protocol = iota // S3
	ec2Query                  // EC2
	awsQuery                  // Auto Scaling, STS, IAM, SQS of old
	awsJSON                   // SSM
	queryJSON                 // SQS: JSON, with the query protocol's code in a header
)

type apiError struct {
	status        int
	code, message string
}

// refusals are the words of each protocol.
//
// S3: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
// EC2: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
// query: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
// JSON: https://docs.aws.amazon.com/systems-manager/latest/APIReference/CommonErrors.html
// SQS: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
var refusals = map[protocol]map[refusal]apiError{
	restXML: {
		missingToken:  {403, "AccessDenied", "Access Denied"},
		malformedAuth: {400, "AuthorizationHeaderMalformed", "The authorization header is malformed"},
		// https://docs.aws.amazon.com/AmazonS3/latest/API/Appendix-Sigv2.html: buckets
		// made since June 2020 know no Signature Version 2.
		otherAlgorithm:  {400, "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."},
		unknownKey:      {403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."},
		wrongToken:      {400, "InvalidToken", "The provided token is malformed or otherwise invalid."},
		wrongSignature:  {403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method."},
		expiredToken:    {400, "ExpiredToken", "The provided token has expired."},
		skewed:          {403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."},
		expiredURL:      {403, "AccessDenied", "Request has expired"},
		unsignedHeaders: {403, "AccessDenied", "There were headers present in the request which were not signed"},
		denied:          {403, "AccessDenied", "Access Denied"},
	},
	ec2Query: {
		missingToken:   {401, "MissingAuthenticationToken", "Request is missing Authentication Token"},
		malformedAuth:  {400, "IncompleteSignature", "The request signature does not conform to AWS standards"},
		otherAlgorithm: {400, "IncompleteSignature", "The request signature does not conform to AWS standards"},
		unknownKey:     {401, "AuthFailure", "AWS was not able to validate the provided access credentials"},
		wrongToken:     {401, "AuthFailure", "AWS was not able to validate the provided access credentials"},
		wrongSignature: {401, "AuthFailure", "AWS was not able to validate the provided access credentials"},
		expiredToken:   {400, "RequestExpired", "Request has expired."},
		skewed:         {400, "RequestExpired", "Request has expired."},
		expiredURL:     {400, "RequestExpired", "Request has expired."},
		denied:         {403, "UnauthorizedOperation", "You are not authorized to perform this operation."},
	},
	awsQuery: {
		missingToken:   {403, "MissingAuthenticationToken", "Request is missing Authentication Token"},
		malformedAuth:  {400, "IncompleteSignature", "The request signature does not conform to AWS standards"},
		otherAlgorithm: {400, "IncompleteSignature", "The request signature does not conform to AWS standards"},
		unknownKey:     {403, "InvalidClientTokenId", "The security token included in the request is invalid."},
		wrongToken:     {403, "InvalidClientTokenId", "The security token included in the request is invalid."},
		wrongSignature: {403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."},
		expiredToken:   {403, "ExpiredToken", "The security token included in the request is expired"},
		skewed:         {403, "SignatureDoesNotMatch", "Signature expired"},
		expiredURL:     {403, "SignatureDoesNotMatch", "Signature expired"},
		denied:         {403, "AccessDenied", "User is not authorized to perform this action"},
	},
	awsJSON: {
		missingToken:   {400, "MissingAuthenticationTokenException", "Missing Authentication Token"},
		malformedAuth:  {400, "IncompleteSignatureException", "The request signature does not conform to AWS standards"},
		otherAlgorithm: {400, "IncompleteSignatureException", "The request signature does not conform to AWS standards"},
		unknownKey:     {400, "UnrecognizedClientException", "The security token included in the request is invalid."},
		wrongToken:     {400, "UnrecognizedClientException", "The security token included in the request is invalid."},
		wrongSignature: {400, "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."},
		expiredToken:   {400, "ExpiredTokenException", "The security token included in the request is expired"},
		skewed:         {400, "InvalidSignatureException", "Signature expired"},
		expiredURL:     {400, "InvalidSignatureException", "Signature expired"},
		denied:         {400, "AccessDeniedException", "User is not authorized to perform this action"},
	},
}

// queryCodes are the query protocol's words that SQS keeps in
// x-amzn-query-error for a refusal of the JSON protocol.
var queryCodes = map[string]string{
	"UnrecognizedClientException": "InvalidClientTokenId", "InvalidSignatureException": "SignatureDoesNotMatch",
	"ExpiredTokenException": "ExpiredToken", "AccessDeniedException": "AccessDenied", "ThrottlingException": "RequestThrottled",
	"MissingAuthenticationTokenException": "MissingAuthenticationToken", "IncompleteSignatureException": "IncompleteSignature",
}

func refusalOf(p protocol, why refusal, message string) apiError {
	table := p
	if p == queryJSON {
		table = awsJSON
	}
	e := refusals[table][why]
	if message != "" && e.code != "AuthFailure" {
		e.message = message
	}
	return e
}

// writeError answers with an error in the protocol's own format.
func writeError(w http.ResponseWriter, r *http.Request, p protocol, e apiError) {
	type entry struct {
		Type    string `xml:",omitempty"`
		Code    string
		Message string
	}
	h := w.Header()
	switch p {
	case restXML:
		s3.WriteError(w, r, &s3.Error{Status: e.status, Code: e.code, Message: e.message})
	case ec2Query:
		h.Set("Content-Type", "text/xml;charset=UTF-8")
		w.WriteHeader(e.status)
		writeXML(w, struct {
			XMLName   xml.Name `xml:"Response"`
			Errors    []entry  `xml:"Errors>Error"`
			RequestID string
		}{Errors: []entry{{Code: e.code, Message: e.message}}, RequestID: requestID()})
	case awsQuery:
		h.Set("Content-Type", "text/xml")
		w.WriteHeader(e.status)
		kind := "Sender"
		if e.status >= 500 {
			kind = "Receiver"
		}
		writeXML(w, struct {
			XMLName   xml.Name `xml:"ErrorResponse"`
			Error     entry
			RequestID string `xml:"RequestId"`
		}{Error: entry{Type: kind, Code: e.code, Message: e.message}, RequestID: requestID()})
	case awsJSON, queryJSON:
		h.Set("Content-Type", "application/x-amz-json-1.1")
		if p == queryJSON {
			h.Set("Content-Type", "application/x-amz-json-1.0")
			code := e.code
			if q, ok := queryCodes[code]; ok {
				code = q
			}
			kind := "Sender"
			if e.status >= 500 {
				kind = "Receiver"
			}
			h.Set("x-amzn-query-error", code+";"+kind)
		}
		h.Set("x-amzn-requestid", requestID())
		w.WriteHeader(e.status)
		b, _ := json.Marshal(map[string]string{"__type": "com.amazon.coral.service#" + e.code, "message": e.message}) // strings always marshal
		_, _ = w.Write(b)
	}
}

func writeXML(w http.ResponseWriter, v any) {
	// The status is sent already: a client that is gone is not told of it.
	_, _ = w.Write([]byte(xml.Header))
	_ = xml.NewEncoder(w).Encode(v)
}
