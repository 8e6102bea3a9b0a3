package vendor

// Kind classifies an Error by what the user can do about it. The core maps the kinds to its own.
type Kind string

// The kinds of errors.
const (
	KindInternal    Kind = "internal"    // a fault of the plugin
	KindInvalid     Kind = "invalid"     // the reference or a setting must change
	KindNotFound    Kind = "not_found"   //
	KindUnavailable Kind = "unavailable" // try again later
	KindExhausted   Kind = "exhausted"   // a limit is reached; RetryAfterMS says until when
	KindDenied      Kind = "denied"      // a login, a licence or a grant is missing
)

// Error is an error that the user should read. Message is one full sentence: what happened, to what, what to do next.
type Error struct {
	Kind         Kind     `json:"kind,omitempty"`
	Code         string   `json:"code,omitempty"` // stable, snake_case: "gated"
	Message      string   `json:"message,omitempty"`
	Param        string   `json:"param,omitempty"`      // the setting or the part of the reference at fault
	HelpURL      string   `json:"helpUrl,omitempty"`    // a page where the user can mend it
	Candidates   []string `json:"candidates,omitempty"` // references that the user may have meant
	RetryAfterMS int64    `json:"retryAfterMs,string,omitempty"`
}

func (e *Error) Error() string { return e.Message }
