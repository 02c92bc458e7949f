//go:build ignore

// ogen.go drives the client of ogen. run.sh copies it to the module of the clients.
package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"os"

	"clients/ogen"

	"github.com/go-faster/jx"
)

var email = os.Getenv("DRIVER") + "@example.com"

const (
	password = "correct horse battery"
	content  = "Ada wrote the first program."
	filter   = `{"lang":"en"}`
)

// tokens is the source of the bearer token.
type tokens struct{ access string }

func (t *tokens) Bearer(context.Context, ogen.OperationName) (ogen.Bearer, error) {
	return ogen.Bearer{Token: t.access}, nil
}

func (t *tokens) Password(context.Context, ogen.OperationName) (ogen.Password, error) {
	return ogen.Password{Token: t.access}, nil
}

func check(what string, ok bool, got any) {
	if !ok {
		log.Fatalf("FAILS: %s %+v", what, got)
	}
	fmt.Println("works:", what)
}

// want returns an answer of the type T, and fails with any other.
func want[T, Res any](what string, res Res, err error) T {
	answer, ok := any(res).(T)
	check(what, err == nil && ok, fmt.Sprintf("%+v, %v", res, err))
	return answer
}

func main() {
	ctx, source := context.Background(), &tokens{}
	api, err := ogen.NewClient(os.Getenv("BASE"), source)
	check("client", err == nil, err)
	account := &ogen.RegisterRequest{Email: email, Password: password}
	user, err := api.Register(ctx, account)
	want[*ogen.UserHeaders]("register", user, err)
	login := ogen.LoginRequest{Username: ogen.NewOptString(email),
		Password: ogen.NewOptString(password)}
	json := ogen.LoginApplicationJSON(login)
	answer, err := api.Login(ctx, &json)
	want[*ogen.TokensHeaders]("login by JSON", answer, err)
	form := ogen.LoginApplicationXWwwFormUrlencoded(login)
	answer, err = api.Login(ctx, &form)
	session := want[*ogen.TokensHeaders]("login by form", answer, err).Response
	refresh := ogen.RefreshApplicationJSON{RefreshToken: session.RefreshToken}
	next, err := api.Refresh(ctx, &refresh)
	source.access = want[*ogen.TokensHeaders]("refresh", next, err).Response.AccessToken
	me, err := api.Me(ctx)
	who := want[*ogen.MeOKHeaders]("me", me, err).Response
	check("full_name", who.FullName.Null && who.Email == email, who)
	documents(ctx, api)
	account.Password = "password"
	user, err = api.Register(ctx, account)
	problem := want[*ogen.InvalidRequestHeaders]("422", user, err).Response
	check("loc", string(problem.Errors[0].Loc[1]) == `"password"`, problem)
}

func documents(ctx context.Context, api *ogen.Client) {
	embedding := make([]float32, 384) // the default of EMBEDDING_DIMENSIONS
	for i := range embedding {
		embedding[i] = float32(math.Sin(float64(i + 1)))
	}
	language := jx.Raw(`"en"`)
	created, err := api.CreateDocument(ctx, &ogen.CreateDocumentRequest{
		Content: content, Embedding: embedding, Metadata: ogen.NewOptCreateDocumentRequestMetadata(
			ogen.CreateDocumentRequestMetadata{"lang": language})}, ogen.CreateDocumentParams{})
	document := want[*ogen.DocumentHeaders]("create", created, err).Response
	page, err := api.ListDocuments(ctx, ogen.ListDocumentsParams{Filter: ogen.NewOptString(filter)})
	list := want[*ogen.ListDocumentsOKHeaders]("list with filter", page, err).Response
	check("listed", len(list) == 1 && list[0].ID == document.ID, list)
	result, err := api.SearchDocuments(ctx, &ogen.SearchRequest{
		Embedding: embedding, Filter: ogen.NewOptSearchRequestFilter(
			ogen.SearchRequestFilter{"lang": language})}, ogen.SearchDocumentsParams{})
	found := want[*ogen.SearchResultHeaders]("search", result, err).Response
	check("found", found.Results[0].Document.ID == document.ID, found)
}
