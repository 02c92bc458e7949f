// Drives the fetch client of orval, and holds answers against its zod schemas.

import * as api from './made/latch';
import * as zod from './made/zod';
import { check, content, email, embedding, filter, password, run } from './steps';

run(async () => {
  const registered = await api.register({ email, password });
  check('register', registered.status === 201 && registered.data.email === email, registered);
  const json = await api.login({ username: email, password });
  check('login by JSON', json.status === 200 && json.data.token_type === 'bearer', json);
  if (json.status !== 200) return;
  const refreshed = await api.refresh({ refresh_token: json.data.refresh_token });
  check('refresh', refreshed.status === 200, refreshed);
  if (refreshed.status !== 200) return;
  const options = { headers: { Authorization: `Bearer ${refreshed.data.access_token}` } };
  const me = await api.me(options);
  check('me', me.status === 200 && me.data.full_name === null && !me.data.is_admin, me);
  check('me by zod', zod.MeResponse.safeParse(me.data).success, me);
  const body = { content, metadata: filter, embedding };
  check('body by zod', zod.CreateDocumentBody.safeParse(body).success);
  const made = await api.createDocument(body, undefined, options);
  check('create', made.status === 201 && made.data.content === content, made);
  if (made.status !== 201) return;
  const list = await api.listDocuments({ filter: JSON.stringify(filter), limit: 5 }, options);
  check('list with filter', list.status === 200 && list.data[0].id === made.data.id, list);
  const found = await api.searchDocuments({ embedding, filter }, undefined, options);
  const hit = found.status === 200 && found.data.results[0].document.id === made.data.id;
  check('search', hit, found);
  check('search by zod', zod.SearchDocumentsResponse.safeParse(found.data).success, found);
  const refused = await api.register({ email, password: 'password' });
  if (refused.status !== 422) return check('422', false, refused);
  check('422', refused.data.errors?.[0].loc.join('.') === 'body.password', refused);
});
