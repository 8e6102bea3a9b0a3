package artifact

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of tokens that registries hand out.
const (
	maxTokenAnswer = 256 << 10
	maxTokens      = 64
	tokenLife      = time.Minute      // where the registry does not say, as its protocol has it
	tokenSlack     = 10 * time.Second // a token is not used in its last seconds
	maxTokenLife   = 24 * time.Hour   // whatever the registry says
	tokenTimeout   = 30 * time.Second // for asking for one
)

// tokens does for the requests of a client what container registries want: an answer 401 that names where a token for it can be
// had is followed by asking there and by the request again. A token is asked for only at the host that wants it, so that none
// of them can have the user's credential sent elsewhere, and it is sent to that host alone. Plugins never see one.
type tokens struct {
	next http.RoundTripper
	now  func() time.Time

	mu sync.Mutex
	// mu guards the field below. It is not held while a token is asked for.
	known map[string]token // by credential, origin and challenge
	// challenges is what was last wanted for the folder of a path, so that most requests need not be refused first.
	challenges map[string]challenge
}

type token struct {
	value string
	until time.Time
}

// withTokens returns a client that gets tokens where registries want them.
func withTokens(c *http.Client) *http.Client {
	out := *c
	if _, ok := c.Transport.(*tokens); ok || c.Transport == nil {
		return &out
	}
	out.Transport = &tokens{next: c.Transport, now: time.Now, known: map[string]token{}, challenges: map[string]challenge{}}
	return &out
}

// challenge is what an answer 401 asks for (RFC 6750, and the token protocol of container registries).
type challenge struct{ realm, service, scope string }

// RoundTrip implements http.RoundTripper.
func (t *tokens) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil && req.Body != http.NoBody {
		return t.next.RoundTrip(req) // it could not be sent twice
	}
	own := req.Header.Get("Authorization")
	key := place(req.URL)
	t.mu.Lock()
	c, ok := t.challenges[key]
	t.mu.Unlock()
	if ok {
		if value, err := t.token(req, c, own); err == nil {
			res, err := t.next.RoundTrip(bearing(req, value))
			if err != nil || res.StatusCode != http.StatusUnauthorized {
				return res, err
			}
			t.forget(req, c, own)
			discard(res)
		}
	}
	res, err := t.next.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusUnauthorized {
		return res, err
	}
	c, ok = parseChallenge(res.Header.Values("Www-Authenticate"), req.URL)
	if !ok {
		return res, nil
	}
	value, err := t.token(req, c, own)
	if err != nil {
		if req.Context().Err() != nil {
			discard(res)
			return nil, err
		}
		return res, nil // the answer 401 says it
	}
	discard(res)
	t.mu.Lock()
	if len(t.challenges) >= maxTokens {
		clear(t.challenges)
	}
	t.challenges[key] = c
	t.mu.Unlock()
	return t.next.RoundTrip(bearing(req, value))
}

// place is the part of a registry that one token is for: in /v2/NAME/blobs/… and /v2/NAME/manifests/… all but the last two.
func place(u *url.URL) string {
	path := u.EscapedPath()
	for range 2 {
		if i := strings.LastIndexByte(path, '/'); i > 0 {
			path = path[:i]
		}
	}
	return u.Scheme + "://" + u.Host + path
}

func bearing(req *http.Request, value string) *http.Request {
	out := req.Clone(req.Context())
	out.Header.Set("Authorization", "Bearer "+value)
	return out
}

// discard ends an answer that is not needed, so that its connection can be used again.
func discard(res *http.Response) {
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10)
	_ = res.Body.Close()
}

func tokenKey(req *http.Request, c challenge, own string) string {
	return strings.Join([]string{own, c.realm, c.service, c.scope, req.URL.Host}, "\x00")
}

func (t *tokens) forget(req *http.Request, c challenge, own string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, tokenKey(req, c, own))
}

// token returns a token for a challenge to req, whose own value of Authorization proves who asks.
func (t *tokens) token(req *http.Request, c challenge, own string) (string, error) {
	key := tokenKey(req, c, own)
	t.mu.Lock()
	known, ok := t.known[key]
	t.mu.Unlock()
	if ok && t.now().Before(known.until) {
		return known.value, nil
	}
	got, err := t.ask(req.Context(), c, own)
	if err != nil {
		return "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxTokens {
		clear(t.known)
	}
	t.known[key] = got
	return got.value, nil
}

var errNoToken = errors.New("the registry gives no token")

func (t *tokens) ask(ctx context.Context, c challenge, own string) (token, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	at, err := url.Parse(c.realm)
	if err != nil {
		return token{}, err
	}
	q := at.Query()
	if c.service != "" {
		q.Set("service", c.service)
	}
	for scope := range strings.FieldsSeq(c.scope) {
		q.Add("scope", scope)
	}
	at.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return token{}, err
	}
	req.Header.Set("User-Agent", userAgent)
	if own != "" {
		req.Header.Set("Authorization", own)
	}
	res, err := t.next.RoundTrip(req) // redirects are not followed
	if err != nil {
		return token{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxTokenAnswer))
	var answer struct {
		Token   string `json:"token"`
		Access  string `json:"access_token"`
		Seconds int64  `json:"expires_in"`
	}
	if err != nil || res.StatusCode != http.StatusOK || json.Unmarshal(body, &answer) != nil {
		return token{}, errors.Join(errNoToken, err)
	}
	value := answer.Token
	if value == "" {
		value = answer.Access
	}
	if value == "" || len(value) > 64<<10 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return token{}, errNoToken
	}
	life := tokenLife
	if answer.Seconds > 0 {
		life = min(time.Duration(min(answer.Seconds, int64(maxTokenLife/time.Second)))*time.Second, maxTokenLife)
	}
	return token{value: value, until: t.now().Add(max(life-tokenSlack, life/2))}, nil
}

// parseChallenge reads a Bearer challenge of an answer to a request to u. It is false where there is none, and where the token
// would have to be asked for elsewhere than at the same origin.
func parseChallenge(headers []string, u *url.URL) (challenge, bool) {
	i := slices.IndexFunc(headers, func(h string) bool { return len(h) > 7 && strings.EqualFold(h[:7], "bearer ") })
	if i < 0 || len(headers[i]) > 4096 {
		return challenge{}, false
	}
	var c challenge
	for rest := headers[i][7:]; ; {
		name, after, ok := strings.Cut(strings.TrimLeft(rest, " ,\t"), "=")
		if !ok {
			break
		}
		var value string
		if strings.HasPrefix(after, `"`) {
			value, rest, ok = strings.Cut(after[1:], `"`) // none of the values may hold one
		} else {
			value, rest, _ = strings.Cut(after, ",")
			value = strings.TrimSpace(value)
		}
		if !ok {
			break
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "realm":
			c.realm = value
		case "service":
			c.service = value
		case "scope":
			c.scope = value
		}
	}
	at, err := url.Parse(c.realm)
	if err != nil || at.User != nil || at.Fragment != "" || at.Scheme != u.Scheme || !strings.EqualFold(at.Host, u.Host) || at.Host == "" {
		return challenge{}, false
	}
	return c, true
}
